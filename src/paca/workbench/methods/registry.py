"""Has PEFT know the methods that this package brings."""


def register_methods() -> None:
    """Register PaCA and MosLoRA, so that PEFT makes and loads their adapters by name."""
    import paca.workbench.methods.moslora  # noqa: F401 - to import it is to register it
    from paca.tuner.registration import register

    register()
