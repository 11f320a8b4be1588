"use strict";
// Every text from a model or a file goes in as textContent: never as markup.
const make = (tag, text, cls) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (cls) node.className = cls;
  return node;
};

const theme = document.getElementById("theme");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
const paint = () => {
  const now = chosen ?? (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = now;
  theme.textContent = now === "dark" ? "Light" : "Dark";
  theme.setAttribute("aria-label", `Switch to the ${now === "dark" ? "light" : "dark"} theme`);
};
theme.hidden = false;
theme.addEventListener("click", () => { chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark"; paint(); });
dark.addEventListener("change", paint);
paint();

const holder = document.getElementById("data");
if (holder && holder.dataset.packed === undefined) browse(JSON.parse(holder.textContent));
else if (holder) unpack(holder.textContent).then(browse, () => {
  document.getElementById("found").textContent =
    "This browser cannot unpack the responses; each run's responses.jsonl has them.";
});

// After the first screen is drawn: what a large experiment answered takes a moment to unpack.
async function unpack(text) {
  await new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)));
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

function browse(data) {
  const PER_PAGE = 5;
  const get = (id) => document.getElementById(id);
  const [search, set, seed, only, arms, found, list] = ["search", "set", "seed", "only", "arms", "found", "prompts"].map(get);
  const option = (select, value, text) => { const node = make("option", text); node.value = value; select.append(node); };
  let page = 0;

  option(set, "", "all");
  data.sets.forEach((name, index) => option(set, index, name.replaceAll("_", " ")));
  data.seeds.forEach((number, index) => option(seed, index, String(number)));
  if (data.seeds.length > 1) option(seed, "", "all");
  option(only, "", "every prompt");
  data.metrics.forEach((name, index) => option(only, index, `where ${name.replaceAll("_", " ")} differs`));
  option(only, "unscored", "with unscored responses");
  const boxes = data.arms.map((name) => {
    const label = make("label"), box = make("input");
    box.type = "checkbox"; box.checked = true;
    label.append(box, name); arms.append(label);
    return box;
  });

  const answers = (prompt) => prompt.r.filter(([arm, at]) =>
    boxes[arm].checked && (at === null || seed.value === "" || at === Number(seed.value)));
  const spread = (shown, metric) => {
    const values = shown.map((one) => one[3][metric]).filter((value) => typeof value === "number");
    return values.length > 1 && Math.max(...values) - Math.min(...values) > 0.1;
  };
  const wanted = (prompt, text) => {
    if (set.value !== "" && prompt.e !== Number(set.value)) return false;
    const shown = answers(prompt);
    if (!shown.length) return false;
    if (only.value === "unscored" && !shown.some((one) => one[3].some((value) => typeof value === "string"))) return false;
    if (only.value !== "" && only.value !== "unscored" && !spread(shown, Number(only.value))) return false;
    if (!text) return true;
    return prompt.p.some((message) => message[1].toLowerCase().includes(text)) ||
      shown.some((one) => (one[2] ?? "").toLowerCase().includes(text));
  };

  const marked = (node, text, needle) => {
    if (!needle) { node.textContent = text; return; }
    const low = text.toLowerCase();
    if (low.length !== text.length) { node.textContent = text; return; }
    let from = 0, at;
    while ((at = low.indexOf(needle, from)) !== -1) {
      node.append(text.slice(from, at), make("mark", text.slice(at, at + needle.length)));
      from = at + needle.length;
    }
    node.append(text.slice(from));
  };

  const card = ([arm, at, text, scores], needle) => {
    const box = make("div", undefined, "answer");
    const head = make("h4", data.arms[arm]);
    if (at !== null && data.seeds.length > 1) head.append(" ", make("span", `seed ${data.seeds[at]}`));
    const body = make("p", undefined, "text");
    body.dir = "auto";
    marked(body, text ?? "(no response: scored as given)", needle);
    box.append(head, body);
    if ((text ?? "").length > 420 || (text ?? "").split("\n").length > 9) {
      body.classList.add("long");
      const more = make("button", "Show all");
      more.type = "button";
      more.setAttribute("aria-expanded", "false");
      more.addEventListener("click", () => {
        const open = body.classList.toggle("long") === false;
        more.textContent = open ? "Show less" : "Show all";
        more.setAttribute("aria-expanded", String(open));
      });
      box.append(more);
    }
    const said = data.metrics.map((name, index) => [name, scores[index]]).filter(([, value]) => value !== null)
      .map(([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "number" ? Number(value.toFixed(3)) : `unscored: ${value}`}`);
    if (said.length) box.append(make("p", said.join(" · "), "scores"));
    return box;
  };

  const show = () => {
    const needle = search.value.trim().toLowerCase();
    const matching = data.prompts.filter((prompt) => wanted(prompt, needle));
    const pages = Math.max(1, Math.ceil(matching.length / PER_PAGE));
    page = Math.min(page, pages - 1);
    const first = page * PER_PAGE;
    list.replaceChildren(...matching.slice(first, first + PER_PAGE).map((prompt) => {
      const box = make("article", undefined, "prompt");
      for (const [role, content] of prompt.p) {
        const asked = make("p", undefined, "asked");
        asked.dir = "auto";
        const body = make("span");
        marked(body, content, needle);
        asked.append(make("span", role === "user" ? data.sets[prompt.e].replaceAll("_", " ") : role, "who"), body);
        box.append(asked);
      }
      if (prompt.t !== null) box.append(make("p", `Expected: ${prompt.t}`, "note"));
      const grid = make("div", undefined, "answers");
      grid.append(...answers(prompt).sort((one, two) => one[0] - two[0]).map((one) => card(one, needle)));
      box.append(grid);
      return box;
    }));
    found.textContent = `${matching.length} of ${data.prompts.length} prompts.${data.note ? ` ${data.note}` : ""}`;
    get("pager").hidden = pages < 2;
    get("page").textContent = `Page ${page + 1} of ${pages}`;
    get("before").disabled = page === 0;
    get("after").disabled = page === pages - 1;
  };
  const again = () => { page = 0; show(); };
  const turn = (by) => { page += by; show(); get("responses").scrollIntoView(); };

  get("filters").addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", again);
  get("filters").addEventListener("change", again);
  get("before").addEventListener("click", () => turn(-1));
  get("after").addEventListener("click", () => turn(1));
  get("filters").hidden = false;
  show();
}
