"""What the pictures of a run on images say."""

from PIL import Image

from paca.workbench.vision.images import Images
from paca.workbench.vision.measure import Answers
from paca.workbench.vision.report import draw_mistakes


def test_a_mistake_says_what_was_predicted_and_what_is_true(tmp_path, drawn):
    images = Images(lambda _: Image.new("RGB", (4, 4)), str, (1, 0, 1), ("bird", "deer"), "here")
    draw_mistakes(tmp_path / "misclassified.png", images, Answers((1, 0, 1), (0, 0, 0), (0.56, 0.9, 0.7), 0.1))
    titles = [axes.get_title() for axes in drawn[0].axes if axes.images]
    assert titles == ["predicted bird 70%\ntrue deer", "predicted bird 56%\ntrue deer"]
