"""Which models an OpenAI-compatible endpoint serves."""

import os

from tropism.errors import UsageError
from tropism.evals.judges.endpoint import Endpoint
from tropism.optional import require


def served_model(
    base_url: str, api_key_env: str = "OPENAI_API_KEY", *, option: str = "--model", timeout: float = 20.0
) -> str:
    """Return the name of the one model behind `base_url` (`GET /models`).

    Raises `UsageError` where the endpoint cannot be reached, refuses, or serves none or several models; the message
    names the `option` that chooses one.
    """
    Endpoint("any", base_url, api_key_env)  # refuses a URL that must not be in files and messages
    openai = require("openai", extra="judge", purpose="an endpoint")
    client = openai.OpenAI(
        api_key=os.environ.get(api_key_env) or "none", base_url=base_url, timeout=timeout, max_retries=1
    )
    try:
        names = [str(model.id) for model in client.models.list()]
    except openai.APIStatusError as error:
        raise UsageError(
            f"the endpoint {base_url} does not list its models (HTTP {error.status_code}); name one with {option}"
        ) from None
    except openai.APIConnectionError:
        raise UsageError(f"the endpoint {base_url} cannot be reached; start it, or correct the URL") from None
    finally:
        client.close()
    if len(names) != 1:
        listed = ", ".join(names[:8]) or "none"
        raise UsageError(f"the endpoint {base_url} serves {len(names)} models ({listed}); name one with {option}")
    return names[0]
