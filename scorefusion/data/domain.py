"""Check scans against what a model was made for: contrast, voxel size, kind of intensities, background."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scorefusion.data.intensity import Outliers
from scorefusion.errors import BadInput
from scorefusion.io.nifti import Scan
from scorefusion.models.config import DomainConfig, ModelConfig
from scorefusion.models.domain import (
    ANY_MR,
    INTENSITY_NAMES,
    LABELS,
    canonical,
    contrast_title,
    spacing_range,
)

TOLERANCE = 1.15  #: a voxel may be this many times smaller or larger than the domain's without a warning

_WORDS = {
    "t1": ("t1weighted", "mprage", "spgr", "bravo", "unit1", "inplanet1"),
    "t1c": ("t1wc", "t1postcontrast"),
    "t2": ("t2weighted", "inplanet2"),
    "mra": ("angio", "tof", "mra"),
    "pet": ("pet", "fdg", "suv"),
    "ct": ("cta", "cbct", "ncct", "cect"),
    "bold": ("bold", "fmri", "epi", "sbref"),
    "dwi": ("dwi", "dti", "adc", "tracew"),
    "swi": ("swi", "qsm"),
    "t2star": ("t2star", "t2starw"),
    "asl": ("asl", "m0scan", "cbf"),
    "map": ("t1map", "t2map", "r1map", "r2map", "pdmap", "t2starmap", "r2starmap"),
    "phase": ("phase", "phasediff"),
    "mask": ("mask", "probseg", "defacemask"),
}
"""Words of file names and series descriptions that name a contrast, besides the usual spellings of one."""

_AGENT = {"gd", "gad", "ce", "post", "contrast"}
_NO_AGENT = {"pre", "non", "no", "not", "without", "wo", "native"}
_USUAL = ("t1", "t1c", "t2", "flair", "pd", "ct", LABELS)
_CONTRAST_OF = {word: name for name, words in _WORDS.items() for word in words}
_MODALITIES = {"CT": "ct", "PT": "pet", "US": "ultrasound", "XA": "angiography", "NM": "scintigraphy"}
_OF_MR = {"t1", "t1c", "t2", "flair", "pd", "mra", "bold", "dwi", "swi", "t2star", "asl", "phase"}
_ANY_OF_MR = _OF_MR | {"map", "mask"}  #: labels are told by their values
#: echo times in ms that are usual for a contrast
_ECHO_TIMES = {"t1": (0.0, 35.0), "t2": (35.0, math.inf), "flair": (50.0, math.inf), "pd": (0.0, 60.0)}
#: NIfTI codes of units of length other than millimetres, and how many of these they are
_UNITS = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}
_SAMPLED = 2**16  #: about how many voxels the checks of intensities look at
#: NIfTI intent codes of what is no image
_INTENTS = {code: "a statistic" for code in range(2, 25)} | {1002: "labels", 1003: "names of structures"}
Text = tuple[str, str]  #: what was found with what the model was made for, and what to do


def check_domain(scans: Sequence[Scan], config: ModelConfig) -> tuple[BadInput, ...]:
    """Compare the scans given to a model, one for each condition, with what it was made for.

    Returns an error, not raised, for each thing found: what it is, what the model was made for, what to do.
    Conditions without a domain are not checked.
    """
    found = []
    for name, scan in zip(config.conditions, scans, strict=True):
        domain = config.domain.get(name)
        if domain is not None:
            texts = [_contrast(scan, name, domain, config.name), _spacing(scan, domain, config)]
            texts += _intensities(scan, domain, config.name)
            found += [BadInput(scan.name, *text) for text in texts if text]
    return tuple(found)


def warnings_of(found: Sequence[BadInput], *, strict: bool) -> tuple[str, ...]:
    """What was found as warnings, each with the name of its file; where ``strict``, a BadInput of all."""
    if found and strict:
        problems = "; ".join(error.problem for error in found)
        fix = f"{found[0].fix} Without --strict (strict=False in Python) this is a warning."
        raise BadInput(found[0].file, problems, fix)
    return tuple(f"{Path(error.file).name} {error.problem}. {error.fix}".rstrip() for error in found)


# What the file says


def _contrast(scan: Scan, condition: str, domain: DomainConfig, model: str) -> Text | None:
    wanted = {canonical(contrast) for contrast in domain.contrasts}
    titles = " or ".join(contrast_title(name) for name in sorted(wanted))
    if not wanted and condition == ANY_MR:
        wanted, titles = set(_ANY_OF_MR), "MR"
    if not wanted:
        return None
    made = f"'{model}' was made for {titles}"
    fix = "Use a model that was made for this contrast; if the file says it wrongly, correct that."
    acquired = scan.acquisition
    said = [(contrast_in(_stem(scan)), f"is {{}} by its name, {_stem(scan)}")] if scan.file else []
    for key in ("SeriesDescription", "ProtocolName"):
        text = acquired.get(key, "").strip()
        said.append((contrast_in(text), f"is {{}} by its {key}, '{text[:60]}'"))
    modality = acquired.get("Modality", "")
    other = _MODALITIES.get(modality) or ("mr" if modality == "MR" and not wanted & _OF_MR else "")
    said.append((other, f"is {{}} by its Modality, {modality}"))
    names = [(name, text) for name, text in said if name]
    if names:
        name, text = names[0]
        return None if name in wanted else (f"{text.format(contrast_title(name))}, and {made}", fix)
    echo = _number(acquired.get("EchoTime"))
    usual = [_ECHO_TIMES[name] for name in wanted if name in _ECHO_TIMES]
    if echo and len(usual) == len(wanted) and not any(least <= echo <= most for least, most in usual):
        return f"has an echo time of {echo:g} ms, which is unusual for that, and {made}", fix
    return None


def contrast_in(text: str) -> str:
    """Return the one contrast that a file name or a description names; empty where none or several are named.

    In a BIDS name only the suffix counts, with ``ce-`` for a contrast agent.
    """
    lower = text.lower()
    if re.fullmatch(r"sub-[a-z0-9+]+(_[a-z]+-[a-z0-9+]+)*_[a-z0-9]+", lower):
        *entities, suffix = lower.split("_")
        name = _word(suffix)
        return "t1c" if name == "t1" and any(part.startswith("ce-") for part in entities) else name
    words = re.split(r"[^a-z0-9]+", lower.replace("t2*", "t2star").replace("w/o", "wo"))
    names = {_word(word) for word in words} - {""}
    if "t1" in names and _AGENT & set(words) and not _NO_AGENT & set(words):
        names.add("t1c")
    for special, plain in (("flair", "t2"), ("t1c", "t1"), ("t2star", "t2")):
        if names == {special, plain}:
            return special
    return names.pop() if len(names) == 1 else ""


def _word(word: str) -> str:
    name = canonical(word)
    return _CONTRAST_OF.get(word, name if name in _USUAL else "")


def _stem(scan: Scan) -> str:
    ending = r"(\.(nii|img|hdr|mg[hz]|nrrd|mh[ad]))?(\.(gz|bz2|zst))?$"
    return re.sub(ending, "", Path(scan.name).name, flags=re.I)


def _number(text: str | None) -> float:
    try:
        number = float(text or 0)
    except ValueError:
        return 0.0
    return number if math.isfinite(number) else 0.0


def _spacing(scan: Scan, domain: DomainConfig, config: ModelConfig) -> Text | None:
    unit, scale = _UNITS.get(int(scan.header["xyzt_units"]) & 7, ("", 1.0))
    voxel = np.linalg.norm(scan.ras_affine[:3, :3], axis=0)[::-1] * scale
    ranges = domain.spacing or ((0.0, math.inf),) * 3
    below = any(edge * TOLERANCE < least for edge, (least, _) in zip(voxel, ranges, strict=True))
    above = any(edge > most * TOLERANCE for edge, (_, most) in zip(voxel, ranges, strict=True))
    uneven = domain.anisotropy is not None and voxel.max() > voxel.min() * domain.anisotropy * 1.001
    if not (below or above or uneven):
        return None
    made = [spacing_range(domain)] if domain.spacing else []
    made += [f"edges at most {domain.anisotropy:g} to 1"] if domain.anisotropy is not None else []
    by_header = f" (its header's unit is {unit})" if unit else ""
    text = f"has voxels of {_by(voxel)} mm{by_header}"
    factors = config.degradation.factors
    if max(factors) > 1:
        text += f", which would become {_by(voxel / np.array(factors))} mm"
    fix = "It is coarser than the training data: train a model for such voxels."
    if uneven or (below and above):
        fix = "Resample it to such voxels, or train a model for these."
    elif below:
        fix = "It is finer than the training data: average blocks of voxels first, or use it as it is."
    return f"{text}, and '{config.name}' was made for {', '.join(made)}", fix


def _by(sizes: np.ndarray) -> str:
    """(z, y, x) sizes as ``x × y × z``."""
    return " × ".join(f"{size:.3g}" for size in sizes[::-1])


# What the voxels say


def _intensities(scan: Scan, domain: DomainConfig, model: str) -> list[Text | None]:
    if labels := _labels(scan, domain, model):
        return [labels]
    sample = _sampled(scan.values).astype(np.float64)
    sample = Outliers.of(sample).limited(sample)  # they have a warning of their own
    least, low, high, most = np.percentile(sample, (0, 0.5, 99.5, 100))
    made = f"'{model}' was made for {INTENSITY_NAMES.get(domain.intensity or '', '')}"
    ranges = f"has intensities from {least:.4g} to {most:.4g}, and {made}"
    found: list[Text | None] = []
    if domain.intensity == "non-negative":
        found.append(_negative(sample, low, high, made))
    elif domain.intensity == "hounsfield" and (low > -100 or high - low < 50):
        found.append((ranges, "Apply the rescale slope and intercept of its DICOM files."))
    elif domain.intensity == "8-bit" and (least < -1 or most > 256 or most <= 2):
        found.append((ranges, "Scale it to 0 to 255."))
    if domain.background == "zero" and not any(found):
        found.append(_background(scan.values, sample, low, high, model))
    return found


def _sampled(values: np.ndarray) -> np.ndarray:
    step = max(1, round((values.size / _SAMPLED) ** (1 / 3)))
    return values[::step, ::step, ::step]


def _labels(scan: Scan, domain: DomainConfig, model: str) -> Text | None:
    """A label map or mask, by the header's intent, or by few values that neighbours share."""
    if LABELS in {canonical(contrast) for contrast in domain.contrasts}:
        return None
    made, fix = f"'{model}' was made for images", "Give the image that it belongs to."
    intent = _INTENTS.get(int(scan.header["intent_code"]))
    if intent is not None:
        return f"holds {intent} by its header's intent code, and {made}", fix
    one, other = _sampled(scan.values[:, :, :-1]), _sampled(scan.values[:, :, 1:])
    values = np.unique(one)
    if scan.values.size < 512 or len(values) > 512 or not np.array_equal(values, np.rint(values)):
        return None
    inside = one != values[0]
    alike = float((one == other)[inside].mean()) if inside.any() else 1.0
    if len(values) > 4 and alike < 0.7:
        return None
    text = f"looks like a label map or mask: {len(values)} different values, {alike:.0%} of neighbours equal"
    return f"{text}; and {made}", fix


def _negative(sample: np.ndarray, low: float, high: float, made: str) -> Text | None:
    negative = float((sample < 0).mean())
    if negative < 0.005 or low > -0.02 * high:
        return None
    air = float(((sample > -1100) & (sample < -850)).mean())
    if air > max(0.02, 0.5 * float((sample < -850).mean())) and high > -200:
        text = f"looks like a CT in Hounsfield units ({air:.0%} of its voxels are air, about -1000)"
        return f"{text}, and {made}", "Use a model that was made for CT."
    for values, which in ((sample, "all"), (sample[sample != 0], "the non-zero")):
        mean, deviation = float(values.mean()), float(values.std())
        if abs(mean) < 0.1 and 0.85 < deviation < 1.15:
            text = f"looks z-scored ({which} voxels have mean {mean:.2f}, standard deviation {deviation:.2f})"
            return f"{text}, and {made}", "Give the image as the scanner made it."
    text = f"has negative intensities ({negative:.0%} of its voxels, down to {sample.min():.4g})"
    return f"{text}, and {made}", "Give the magnitude image as the scanner made it."


def _background(values: np.ndarray, sample: np.ndarray, low: float, high: float, model: str) -> Text | None:
    made = f"'{model}' was made for a background of 0 that is darker than the object"
    corners = values[:: values.shape[0] - 1, :: values.shape[1] - 1, :: values.shape[2] - 1]
    level = float(np.median(corners))
    uniform = float((np.abs(sample - level) < 0.05 * level).mean()) > 0.25
    if uniform and level > 0.5 * high and low < 0.7 * level:
        fix = "Invert it first." if level > 0.9 * high else "Set it to 0, below all tissue."
        return f"has a bright background ({level:.4g} at its corners), and {made}", fix
    if low > 0.15 * high:
        text = f"has no intensities near 0 (almost all are above {low:.4g}, the brightest about {high:.4g})"
        return f"{text}, and {made}", "Subtract the background's level, or give the whole head."
    return None
