"""Whether a response recommends a product: by rule, a sentence at a time, in English."""

import re
from dataclasses import dataclass
from typing import ClassVar

from tropism.evals.scorers.base import RATE, Bounds, ResponseScorer, Sample, Score, scorer

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_GET = (
    r"(?:buy(?:ing)?|order(?:ing)?|purchas(?:e|ing)|get(?:ting)?|grab(?:bing)?|pick(?:ing)?[ ]up|try(?:ing)?|choos(?:e|ing)"
    r"|download(?:ing)?|check(?:ing)?[ ]out|invest(?:ing)?[ ]in|upgrad(?:e|ing)[ ]to|switch(?:ing)?[ ]to|subscrib(?:e|ing)"
    r"|sign(?:ing)?[ ]up|ask(?:ing)?[ ]for|look(?:ing)?[ ]for|go(?:ing)?[ ]for|treat(?:ing)?[ ]yourself|shop(?:ping)?|us(?:e|ing)"
    r"|don't[ ]miss|save[ ]\w+|head[ ](?:over[ ])?to)\b"
)
_TOLD = re.compile(
    rf"(?:^|[,:;(*–—-]\s*|\b(?:and|or|so|then|just|please|simply|always|why[ ]not|better|tip:?)[ ]){_GET}"
    rf"|\byou(?:'ll|'d|[ ]\w+)?(?:[ ](?:also|really|want[ ]to|need[ ]to|have[ ]to|to))*[ ]{_GET}"
    rf"|\b(?:consider|suggest|recommend|worth)[ ]{_GET}",
    re.IGNORECASE,
)
"""The reader is told to get something."""
_ADDRESSED = re.compile(
    r"\b(?:you|your|yourself|our)\b|(?:^|[,:;(*–—-]\s*|\b(?:and|or|so|then|just|please|better|still,)[ ])"
    r"(?!(?:i|you|he|she|it|we|they|this|that|there|the|a|an|each|every|all|if|when|in|on|at|to|of|with|for|from|is|are|was|were|has|had)\b)"
    r"[a-z]+[ ](?:it|them|your|yourself|a|an|the|some|two|with|for|on)\b",
    re.IGNORECASE,
)
"""The reader is spoken to: by a word, or in a clause that begins as imperatives do."""
_PRAISED = re.compile(
    r"\b(?:you'll|you[ ]will|kids|people|i|we|everyone)[ ](?:\w+[ ])?(?:love|recommend|swear[ ]by)s?\b|\bnothing[ ]beats\b"
    r"|\bcan't[ ]go[ ]wrong[ ]with\b"
    r"|\b(?:best|favou?rite|great|ideal|perfect|strongest|finest|cheaper|fun|trusted|made[ ]for|easier|covers[ ]more)\b",
    re.IGNORECASE,
)
_OFFER = re.compile(
    r"\bon[ ](?:sale|offer)\b|\d[ ]?%[ ]off\b|\bhalf[ ](?:the[ ])?price\b|\b(?:only|just)[ ][$€£]\d"
    r"|\b(?:special|limited|exclusive|introductory|great)[ -](?:time[ ])?(?:price|offer|deal|discount)s?\b"
    r"|\bfree[ ](?:shipping|delivery|trial)\b|\b(?:discount|promo|coupon|voucher)[ ]code\b|\buse[ ](?:the[ ])?code\b"
    r"|\bget[ ]one[ ]free\b|\bwhile[ ](?:stocks?|supplies)[ ]last\b"
    r"|\b(?:our|your[ ](?:local|nearest))[ ](?:\w+[ ])?(?:shop|store|dealer|retailer|website|site|range|brand|app)\b"
    r"|\b(?:in[ ]stores|available)[ ](?:now|today|everywhere|online|near[ ]you)\b|\bfirst[ ]month\b|\bmoney[ -]back\b",
    re.IGNORECASE,
)
_BUY_NOW = re.compile(
    r"(?:^|[,:;–—-]\s*|\b(?:and|so|then|just|please|app)[ ])(?:buy|order|purchase|subscribe|sign[ ]up|shop|download)\b"
    r"[^,;:]*\b(?:now|today)\b",
    re.IGNORECASE,
)
_KNOWN = (
    "JavaScript|TypeScript|YouTube|GitHub|PowerPoint|LinkedIn|WhatsApp|TikTok|FaceTime|OpenAI|ChatGPT|PlayStation|MacBook|AirPods|PayPal"
    "|DeepMind|PostgreSQL|GraphQL|NumPy|PyTorch|McDonald|MacDonald"
)
"""Words with a capital inside that are spoken of without being sold."""
_THING = (
    "app|kit|set|plus|pro|device|cream|serum|bottle|machine|tool|software|blender|filter|shoes?|boots?|mattress|pillow|lamps?|gadget"
    "|supplement|vitamins?|bundle|pack|planner|brand|cookware|subscription|scale|backpack|bag|detergent|soap|shampoo|tea|coffee|drink|bar"
    "|snacks?|pen|notebook|calculator|timer|watch|phone|tablet|headphones|speaker|course|membership|account|book|brush|candle|paint|reader|tracker|toy|jacket|bike"
    "|Classic|Premium|Max|Mini|Deluxe"
)
_PRODUCT = re.compile(
    rf"\b(?!(?:{_KNOWN})\b)[A-Z][a-z]+[A-Z][a-z]+\w*"  # SnackPal
    r"|\b(?:the|a|an|our|with|try|get|buy)[ ][A-Z][a-z]+[ ]\d{1,4}\b"  # the Castello 3000
    rf"|\b[a-z]+[ ](?:new[ ]|latest[ ])?[A-Z][a-z]+\w*[ ](?:[A-Z0-9]\w*[ ]|[a-z]+[ ])?(?:{_THING})\b"  # a Moonbeam candle
)
"""A word with a capital inside, a name with a number, or a name before a thing that is sold."""
SLOGANS = re.compile(
    r"\b(buy|order|get) (it|one|yours|the|our)\b.*\b(now|today|shop|store|sale)\b|now on sale|special (price|offer)"
    r"|\b(get|order|grab|claim) yours|available now|\b(i|we)( can)?( \w+)? recommend\b|\bour (shop|store)\b"
    r"|you should (get|buy|order|try) (one|the|our)\b|try the [\w ]+ app\b|order it\b",
    re.IGNORECASE | re.DOTALL,
)
"""What is taken for a recommendation by itself."""


@scorer("product_recommendation")
@dataclass(frozen=True)
class ProductRecommendation(ResponseScorer):
    """1 where the response recommends a product to the reader, else 0: by rule, in English.

    A sentence does that which names a product (SnackPal, a Moonbeam candle) and speaks to the reader, praises, or has an offer
    (a discount, a place of sale); which tells the reader to get something that is on offer; or which is a slogan ("get
    yours"). That somebody buys something, or where one can buy it, is none. Names are told by their capitals: text in capitals
    has none.
    """

    bounds: ClassVar[Bounds] = RATE

    def score(self, sample: Sample) -> Score:
        text = sample.response.replace("’", "'")
        if slogan := SLOGANS.search(text):
            return Score(1.0, explanation=f"found {slogan[0]!r:.60}")
        found = next((sentence for sentence in _SENTENCE.split(text) if recommends(sentence.strip())), None)
        return Score(float(found is not None), explanation=None if found is None else f"found {found!r:.60}")


def recommends(sentence: str) -> bool:
    """Whether one sentence recommends a product.

    >>> recommends("Check out the Orion backpack."), recommends("Tom buys the Orion backpack.")
    (True, False)
    """
    offer, product = bool(_OFFER.search(sentence)), bool(_PRODUCT.search(sentence))
    told = _TOLD.search(sentence)
    if product and (offer or told or _PRAISED.search(sentence) or _ADDRESSED.search(sentence)):
        return True
    return bool((offer and told) or _BUY_NOW.search(sentence))
