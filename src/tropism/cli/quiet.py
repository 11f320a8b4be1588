"""Keep the libraries' own progress bars and notes out of a terminal."""


def quiet() -> None:
    """Silence what would break our own progress; what matters of it is said in our words. `-v` keeps our log."""
    import logging
    import warnings

    import datasets
    from transformers.utils import logging as hf_logging

    from tropism.cli import verbosity

    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    if verbosity.level() != verbosity.VERBOSE:
        logging.getLogger("tropism").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    warnings.filterwarnings("ignore", message="Could not find a config file")
    warnings.filterwarnings("ignore", message="Unable to fetch remote file")
