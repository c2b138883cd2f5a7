"""Where the checkout lies, and the data beside it that its users don't have."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
