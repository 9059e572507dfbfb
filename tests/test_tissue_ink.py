"""Pen ink: strokes of every colour drawn on pictures, what of them is kept, and that the tissue stays."""

import cv2
import numpy as np
import pytest
from PIL import Image

from mhim.slides.array import ArraySlide
from mhim.tissue import TissueConfig, segment_tissue

INKS = {
    "blue": (35, 60, 165),
    "dark blue": (25, 30, 95),
    "green": (25, 120, 70),
    "light green": (120, 200, 130),
    "teal": (20, 120, 135),
    "red": (205, 35, 50),
    "crimson": (165, 20, 60),
    "rose": (205, 35, 95),
    "orange": (235, 120, 40),
    "black": (30, 28, 32),
    "cyan": (60, 165, 205),
    "violet": (95, 35, 140),
    "purple": (85, 40, 125),
    "dark purple": (60, 25, 90),
    "faint blue": (130, 160, 220),
}


TRANSLUCENT = {"slate": (91, 108, 161), "grey": (80, 76, 82)}
AMBER = {"yellow": (240, 220, 60), "ochre": (200, 150, 50), "brown": (120, 75, 40), "dark brown": (70, 40, 25)}
HAEMATOXYLIN, EOSIN, DAB = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)


def restained(rgb, haematoxylin, eosin):
    """A picture in H&E whose dyes absorb as the given densities (3,) of red, green and blue instead."""
    density = -np.log((rgb + 1.0) / 256)
    glass = np.median(density[rgb.min(axis=2) >= np.percentile(rgb.min(axis=2), 85)], axis=0)
    dyes = np.maximum((density - glass) @ np.linalg.pinv(np.array([HAEMATOXYLIN, EOSIN])), 0)
    stained = np.exp(-(dyes @ np.array([haematoxylin, eosin], dtype=float))) * 256 - 1
    return stained.clip(0, 255).astype(np.uint8)


def marked(rgb, ink, points, width):
    """The picture under a stroke of translucent, slightly uneven ink; and where the stroke is."""
    rng = np.random.default_rng(0)
    stroke = np.zeros(rgb.shape[:2], np.uint8)
    cv2.polylines(stroke, [np.array(points, np.int32)], False, 255, width, cv2.LINE_AA)
    alpha = cv2.GaussianBlur(stroke.astype(np.float32) / 255, (0, 0), 1)
    streaks = cv2.GaussianBlur(rng.normal(size=stroke.shape).astype(np.float32), (0, 0), 4)
    density = alpha * (1 + 0.1 * streaks / streaks.std())
    transmitted = np.exp(density[..., None] * np.log((np.array((INKS | AMBER | TRANSLUCENT)[ink]) + 1) / 256))
    return ((rgb + 1.0) * transmitted - 1).clip(0, 255).astype(np.uint8), stroke > 128


def check(pixels, mpp, ink, points, width, least_iou):
    clean = segment_tissue(ArraySlide(pixels, mpp), TissueConfig(mpp=mpp)).cells
    drawn, stroke = marked(pixels, ink, points, width)
    mask = segment_tissue(ArraySlide(drawn, mpp), TissueConfig(mpp=mpp))
    assert mask.cells[stroke].mean() < 0.05
    assert mask.rejected is not None
    assert mask.rejected[stroke].mean() > 0.9
    same, either = (mask.cells & clean)[~stroke].sum(), (mask.cells | clean)[~stroke].sum()
    assert same / either > least_iou


@pytest.mark.parametrize("ink", INKS)
def test_ink_on_a_real_picture(shared, ink):
    """A loop over glass and tissue of a real slide: under 5 % of the ink is kept, the tissue beside it stays."""
    name = "histoqc_coverslip_edge.png"
    pixels = np.array(Image.open(shared / "data" / "tissue_thumbnails" / name).convert("RGB"))
    turn = np.linspace(0, 6, 60)
    loop = np.stack([330 + 130 * np.cos(turn), 200 + 150 * np.sin(turn)], axis=1)
    check(pixels, 16.0, ink, loop, 22, 0.94)


@pytest.mark.parametrize("ink", ["blue", "green", "red", "black"])
def test_ink_on_a_real_array(shared, ink):
    """Strokes between the spots of a tissue microarray."""
    name = "histoprep_tma_spots.jpeg"
    pixels = np.array(Image.open(shared / "data" / "tissue_thumbnails" / name).convert("RGB").reduce(2))
    check(pixels, 16.0, ink, [(60, 300), (300, 200), (600, 900)], 20, 0.9)


@pytest.mark.parametrize("ink", ["violet", "faint blue"])
def test_ink_on_a_violet_slide(shared, ink):
    """A line beside and across a lymph node whose own stain is violet: the line goes, most of the node stays."""
    from mhim.slides import open_slide

    with open_slide(shared / "data" / "wsi_samples" / "camelyon16_overview_multiframe.dcm") as slide:
        pixels, mpp = slide.read((0, 0), slide.size_px0, slide.mpp0), slide.mpp0
    clean = segment_tissue(ArraySlide(pixels, mpp))
    assert clean.rejected is not None
    assert clean.rejected.mean() < 0.001
    drawn, stroke = marked(pixels, ink, [(30, 560), (480, 540), (560, 200)], 18)
    mask = segment_tissue(ArraySlide(drawn, mpp))
    assert mask.cells[stroke].mean() < 0.1
    stained = (pixels.max(axis=2).astype(int) - pixels.min(axis=2) > 60) & clean.cells & ~stroke
    assert mask.cells[stained].mean() > 0.93


def test_broad_translucent_blue_on_a_real_array(shared):
    """Pale blue that covers more than the spots do: it goes from the glass, spots beside it stay."""
    picture = Image.open(shared / "data" / "tissue_thumbnails" / "histoprep_tma_spots.jpeg")
    pixels = np.array(picture.convert("RGB").reduce(2))
    clean = segment_tissue(ArraySlide(pixels, 16.0)).cells
    drawn, stroke = marked(pixels, "slate", [(500, 250), (500, 1300)], 80)
    cells = segment_tissue(ArraySlide(drawn, 16.0)).cells
    assert (stroke & ~clean).sum() > 0.8 * clean.sum()
    assert cells[stroke & ~clean].mean() < 0.03
    assert cells[clean & ~stroke].mean() > 0.95


def test_thin_black_over_pink_tissue(shared):
    """Black ink that lets the colour of eosin through, inside tissue: it goes, the tissue beside it stays."""
    from mhim.slides import open_slide

    with open_slide(shared / "data" / "wsi_samples" / "tcga-cr-7395-01a-01-ts1.svs", mpp0=0.5) as slide:
        pixels = np.pad(slide.thumbnail(1000), ((150, 150), (150, 150), (0, 0)), constant_values=243)
    clean = segment_tissue(ArraySlide(pixels, 16.0), TissueConfig(mpp=16.0)).cells
    drawn, stroke = marked(pixels, "grey", [(450, 500), (850, 600)], 40)
    cells = segment_tissue(ArraySlide(drawn, 16.0), TissueConfig(mpp=16.0)).cells
    assert cells[stroke & clean].mean() < 0.1
    assert cells[clean & ~stroke].mean() > 0.95


@pytest.mark.parametrize("ink", AMBER)
def test_yellow_and_brown_ink_beside_tissue(shared, ink):
    """A line across the glass beside tissue in H&E, whose stain has no such colour."""
    pixels = np.array(Image.open(shared / "data" / "tissue_thumbnails" / "histoqc_coverslip_edge.png").convert("RGB"))
    check(pixels, 16.0, ink, [(130, 30), (300, 20), (330, 100), (140, 190)], 22, 0.97)


@pytest.mark.parametrize("share", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("counterstain", [0.0, 0.7])
def test_brown_stain_is_not_ink(shared, share, counterstain):
    """Spots of real tissue in DAB, weak to dense, with or without counterstain: nothing is left out as ink."""
    name = "histoprep_tma_spots.jpeg"
    pixels = np.array(Image.open(shared / "data" / "tissue_thumbnails" / name).convert("RGB").reduce(2))
    brown = restained(
        pixels, [0.6 * counterstain, 0.5 * counterstain, 0.3 * counterstain], np.multiply(DAB, 1.5 * share)
    )
    rejected = segment_tissue(ArraySlide(brown, 16.0)).rejected
    assert rejected is not None
    assert not rejected.any()


def test_dense_haematoxylin_is_not_ink(shared):
    """Spots of real tissue with twice the haematoxylin: as dense as ink, but without a gap to what is paler."""
    name = "histoprep_tma_spots.jpeg"
    pixels = np.array(Image.open(shared / "data" / "tissue_thumbnails" / name).convert("RGB").reduce(2))
    dense = restained(pixels, np.multiply(HAEMATOXYLIN, 2), EOSIN)
    mask = segment_tissue(ArraySlide(dense, 16.0))
    assert (dense[..., 1][mask.cells] < 60).mean() > 0.15
    assert mask.rejected is not None
    assert not mask.rejected.any()


def test_dense_violet_stain_is_not_ink():
    """Follicles of dense haematoxylin, as vivid as ink but uneven, in paler tissue."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.normal(size=(600, 600)).astype(np.float32), (0, 0), 1.5)
    pixels = np.full((600, 600, 3), 241.0)
    factor = (1 + 0.35 * texture / texture.std())[..., None].clip(0.2, 2.5)
    dense = 255 * np.exp(np.log((np.array((95, 40, 140)) + 1) / 256) * factor)
    pale = 255 * np.exp(np.log((np.array((190, 120, 180)) + 1) / 256) * factor)
    pixels[60:540, 60:540] = pale[60:540, 60:540]
    for x in (150, 300, 450):
        inside = (np.hypot(*np.ogrid[-300:300, -x : 600 - x]) < 50)[..., None]
        pixels = np.where(inside, dense, pixels)
    mask = segment_tissue(ArraySlide(pixels.clip(0, 255).astype(np.uint8), 16.0))
    assert mask.cells[80:520, 80:520].mean() > 0.98


def test_ink_can_be_kept(shared):
    """Without rejection a blue stroke counts as tissue, as its colour is strong."""
    pixels = np.full((300, 400, 3), 240, dtype=np.uint8)
    pixels[150:280, 50:350] = (200, 120, 170)
    drawn, stroke = marked(pixels, "blue", [(40, 60), (360, 60)], 20)
    kept = segment_tissue(ArraySlide(drawn, 16.0), TissueConfig(reject_ink=False)).cells
    left_out = segment_tissue(ArraySlide(drawn, 16.0), TissueConfig()).cells
    assert kept[stroke].mean() > 0.9
    assert not left_out[stroke].any()
    assert left_out[160:270, 60:340].all()


def test_blue_stain_is_not_ink(shared):
    """Marrow stained blue: textured, and the colour of nearly all of the tissue."""
    from mhim.slides import open_slide

    with open_slide(shared / "data" / "wsi_samples" / "bone_jpeg2000.dcm") as slide:
        mask = segment_tissue(slide)
    assert 0.72 < mask.fraction < 0.88


@pytest.mark.parametrize(
    "colour", [(150, 165, 205), (120, 75, 50), (205, 130, 175), (90, 60, 140), (190, 60, 110), (160, 50, 95)]
)
def test_stains_are_not_ink(colour):
    """Counterstain, DAB, H&E, dense haematoxylin and strong eosin with the texture of tissue are all kept."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.normal(size=(200, 300)).astype(np.float32), (0, 0), 1.5)
    pixels = rng.normal(241, 2, (400, 500, 3))
    factor = 1 + 0.25 * texture / texture.std()
    pixels[100:300, 100:400] = 255 * np.exp(np.log((np.array(colour) + 1) / 256) * factor[..., None].clip(0.3, 2))
    mask = segment_tissue(ArraySlide(pixels.clip(0, 255).astype(np.uint8), 16.0))
    assert mask.cells[105:295, 105:395].mean() > 0.97


def test_blood_inside_tissue_stays(shared):
    """A lake of blood within tissue has the colour of red ink, but touches no glass."""
    pixels = np.full((400, 400, 3), 240, dtype=np.uint8)
    pixels[60:340, 60:340] = (205, 130, 175)
    cv2.circle(pixels, (200, 200), 40, (185, 70, 80), -1)
    assert segment_tissue(ArraySlide(pixels, 16.0)).cells[70:330, 70:330].all()


def test_black_frame_is_left_out():
    """A dark border around the scan is no tissue, and does not take tissue with it."""
    from slide_files import stained

    pixels = stained(400, 300, (80, 60, 320, 240))
    pixels[:25] = pixels[-25:] = 12
    pixels[:, :25] = pixels[:, -25:] = 12
    mask = segment_tissue(ArraySlide(pixels, 16.0), TissueConfig(mpp=16.0))
    assert mask.cells[64:236, 84:316].all()
    assert mask.fraction == pytest.approx(180 * 240 / 120_000, rel=0.05)


def test_pale_tissue_joins_the_stained(shared):
    """Fat at the edge of stained tissue: pale pink far below Otsu's threshold, taken only with the tissue."""
    pixels = np.random.default_rng(0).normal(241, 1, (300, 400, 3))
    pixels[100:200, 50:150] = (190, 90, 150)
    pixels[100:200, 150:300] = (240, 230, 238)
    slide = ArraySlide(pixels.clip(0, 255).astype(np.uint8), 16.0)
    assert segment_tissue(slide).cells[105:195, 55:295].mean() > 0.97
    assert not segment_tissue(slide, TissueConfig(faint=False)).cells[105:195, 160:].any()
    pixels[100:200, 50:150] = 241
    alone = ArraySlide(pixels.clip(0, 255).astype(np.uint8), 16.0)
    assert not segment_tissue(alone).cells.any()
