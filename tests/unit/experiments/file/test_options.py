"""The fields of a registered dataclass are the options of a file."""

import pytest

from tropism.data.transforms import TRANSFORMS
from tropism.directions.sae import SAELatents
from tropism.errors import SpecError
from tropism.experiments.file import guards
from tropism.experiments.file.options import from_options
from tropism.site import Site


def sae(**options):
    return guards.finder({"sae_latents": {"folder": "x", **options}})


def test_a_list_in_a_file_is_a_tuple_in_the_code():
    assert sae(latents=[3, 1]) == SAELatents(folder="x", latents=(3, 1))


@pytest.mark.parametrize("text", [3, "3", "resid_post.3"])
def test_a_site_is_written_as_text(text):
    assert sae(site=text).site == Site(3)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"sae_latents": {"folder": "x", "site": "middle"}}, r"option 'site': a site is 'STREAM.LAYER' or 'LAYER' .*, found 'middle'"),
        ({"sae_latents": {"folder": "x", "site": True}}, r"option 'site': a site is .*, found True"),
        ({"sae_latents": {"folder": "x", "latents": [1, "two"]}}, r"option 'latents': .*integer, found 'two'"),
        ({"pca": {"k": True}}, r"finder 'pca': option 'k': .*integer, found True"),
        ({"pca": {"k": 0}}, r"finder 'pca': PCA.k must be at least 1, found 0"),
        ({"pca": 3}, r"finder 'pca': its options must be a mapping, found 3"),
        ({"pca": {}, "mean_difference": {}}, r"a finder is a name or one .*, found the keys pca, mean_difference"),
        ({"logistic_probe": {"C": float("nan")}}, r"finder 'logistic_probe': LogisticProbe.C must be above 0, found nan"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_a_mistake_of_the_file(named, message):
    with pytest.raises(SpecError, match=message):
        guards.finder(named)


def test_a_required_option_is_named():
    with pytest.raises(SpecError, match="transform 'system_prompt' needs the option 'text'"):
        from_options("system_prompt", TRANSFORMS, "transform")
