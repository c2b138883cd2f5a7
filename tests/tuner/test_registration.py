"""How PEFT comes to know the method: import order, cost of the import, and PEFT versions with a PaCA of their own."""

import logging
import subprocess
import sys
import textwrap

import pytest

import paca
from paca.tuner.registration import register


def run(script):
    """Run a script in a fresh interpreter; its standard output and error."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_the_import_is_light():
    out, _ = run("""
        import sys, time
        start = time.perf_counter()
        import paca
        took = time.perf_counter() - start
        print(sorted({"torch", "peft", "transformers", "numpy", "safetensors"} & set(sys.modules)), took < 0.5)
    """)
    assert out == "[] True"


def test_paca_before_peft():
    """Also when a part of PEFT is asked for first."""
    out, _ = run("""
        import paca
        from peft.utils import PeftType
        from peft import PacaConfig, PacaModel
        import peft.tuners
        print(PacaConfig is paca.PacaConfig, PacaModel is paca.PacaModel, peft.tuners.PacaConfig is PacaConfig)
        print(PeftType("PACA") is PeftType.PACA, PeftType.PACA == "PACA", callable(paca.reselect))
    """)
    assert out.split() == ["True"] * 6


@pytest.mark.parametrize("module", ["config", "selection.given", "layers.linear"])
def test_a_module_of_the_tuner_can_be_imported_first(module):
    """PEFT's import came midway, and the registration that follows it met a module that was only half imported."""
    out, _ = run(f"""
        import importlib, sys
        importlib.import_module("paca.tuner.{module}")
        print("PACA" in sys.modules["peft"].PEFT_TYPE_TO_CONFIG_MAPPING)
    """)
    assert out == "True"


def test_the_method_is_registered_before_any_other_module_of_the_tuner_is_imported():
    """So each of them can be imported first, which is tried in a process of its own for three of them."""
    out, _ = run("""
        import importlib, pkgutil, sys
        import paca.tuner
        print("PACA" in sys.modules["peft"].PEFT_TYPE_TO_CONFIG_MAPPING)
        names = [module.name for module in pkgutil.walk_packages(paca.tuner.__path__, "paca.tuner.")]
        for name in sorted(names, reverse=True):
            importlib.import_module(name)
        print(len(names) > 40)
    """)
    assert out.split() == ["True"] * 2


def test_a_look_for_peft_does_not_lose_the_registration():
    """`import paca; import trl` left PaCA unknown: trl first looks whether PEFT is there, which used the hook up."""
    out, _ = run("""
        import paca, importlib.util
        importlib.util.find_spec("peft")
        importlib.util.find_spec("peft")
        import peft
        print("PACA" in {str(kind.value) for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING})
    """)
    assert out == "True"


def test_peft_before_paca():
    out, _ = run("""
        from peft import get_peft_model
        import peft, paca
        print(peft.PacaConfig is paca.PacaConfig, peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING["PACA"] is paca.PacaModel)
    """)
    assert out.split() == ["True"] * 2


def test_without_peft_the_import_says_so():
    out, _ = run("""
        import sys
        class Hidden:
            def find_spec(self, name, path=None, target=None):
                if name == "peft":
                    raise ModuleNotFoundError("No module named 'peft'", name="peft")
        import paca
        sys.meta_path.insert(0, Hidden())
        try:
            paca.PacaConfig
        except ModuleNotFoundError as error:
            print(error)
    """)
    assert out == "No module named 'peft'"


def test_registering_again_changes_nothing(caplog):
    from peft import mapping
    from peft.utils.peft_types import PeftType

    tables = ("CONFIG", "TUNER", "PREFIX")
    before = [dict(getattr(mapping, f"PEFT_TYPE_TO_{table}_MAPPING")) for table in tables]
    members = list(PeftType)
    with caplog.at_level(logging.DEBUG, logger="paca"):
        register()
        register()
    assert [dict(getattr(mapping, f"PEFT_TYPE_TO_{table}_MAPPING")) for table in tables] == before
    assert list(PeftType) == members
    assert [member.value for member in members].count("PACA") == 1
    assert not caplog.records


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'paca' has no attribute 'Config'"):
        _ = paca.Config


LATER_PEFT = """
    import logging, sys
    logging.basicConfig(format="LOG %(name)s %(levelname)s %(message)s", level=logging.INFO)
    import peft
    from peft import mapping
    from peft.config import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner
    from peft.utils.peft_types import PeftType, register_peft_method
    from dataclasses import dataclass

    # What a PEFT with a PaCA of its own looks like: the member, and its classes in the tables.
    member = str.__new__(PeftType, "PACA")
    member._name_ = member._value_ = "PACA"
    PeftType._member_names_.append("PACA")
    PeftType._member_map_["PACA"] = PeftType._value2member_map_["PACA"] = member
    type.__setattr__(PeftType, "PACA", member)

    @dataclass
    class PacaConfig(PeftConfig):
        def __post_init__(self):
            super().__post_init__()
            self.peft_type = PeftType.PACA

    class PacaModel(BaseTuner):
        prefix = "paca_"

    classes = {"config_cls": PacaConfig, "model_cls": PacaModel}
    register_peft_method(name="paca", **classes, prefix="paca_", is_mixed_compatible=True)
    peft.PacaConfig, peft.PacaModel = PacaConfig, PacaModel
"""


def test_a_peft_with_a_paca_of_its_own_is_taken_over_with_one_line():
    """Its classes are replaced everywhere; its configurations, made before, are refused with the way out."""
    out, err = run(
        LATER_PEFT
        + """
    theirs = PacaConfig()
    import paca, torch
    from paca.tuner.registration import register
    register()
    print(peft.PacaConfig is paca.PacaConfig, mapping.PEFT_TYPE_TO_TUNER_MAPPING[PeftType.PACA] is paca.PacaModel)
    print(PeftType.PACA is member, PeftType.PACA in mapping.PEFT_TYPE_TO_MIXED_MODEL_MAPPING)
    print(mapping.PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.PACA])
    try:
        peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), theirs)
    except paca.PacaError as error:
        print(error)
    """
    )
    assert out.splitlines() == [
        "True True",
        "True False",
        "paca_",
        "__main__.PacaConfig is another package's configuration. Take PacaConfig from this one: `from paca import "
        "PacaConfig`.",
    ]
    lines = [line for line in err.splitlines() if line.startswith("LOG paca")]
    assert lines == [
        "LOG paca.tuner.registration WARNING paca takes the method PACA over from PEFT's own __main__.PacaConfig; "
        "adapter files stay interchangeable."
    ]
