"""What an enhanced object says of one frame in functional groups, as a classic object says it."""

from __future__ import annotations

from typing import Any

from scorefusion.io.dicom.decimals import decimals
from scorefusion.io.dicom.frames import Frame
from scorefusion.optional import need

_RENAMED = {
    "RepetitionTime": ("MRTimingAndRelatedParametersSequence", "RepetitionTime"),
    "FlipAngle": ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    "EchoTrainLength": ("MRTimingAndRelatedParametersSequence", "EchoTrainLength"),
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
    "NumberOfAverages": ("MRAveragesSequence", "NumberOfAverages"),
    "ImagingFrequency": ("MRImagingModifierSequence", "TransmitterFrequency"),
    "PixelBandwidth": ("MRImagingModifierSequence", "PixelBandwidth"),
    "KVP": ("CTXRayDetailsSequence", "KVP"),
    "FilterType": ("CTXRayDetailsSequence", "FilterType"),
    "DataCollectionDiameter": ("CTAcquisitionDetailsSequence", "DataCollectionDiameter"),
    "TableHeight": ("CTAcquisitionDetailsSequence", "TableHeight"),
    "RotationDirection": ("CTAcquisitionDetailsSequence", "RotationDirection"),
    "ReconstructionDiameter": ("CTReconstructionSequence", "ReconstructionDiameter"),
    "ConvolutionKernel": ("CTReconstructionSequence", "ConvolutionKernel"),
    "BodyPartExamined": ("FrameAnatomySequence", "BodyPartExamined"),
    "RescaleType": ("PixelValueTransformationSequence", "RescaleType"),
}
_PULSES = {"SPIN": ["SE"], "GRADIENT": ["GR"], "BOTH": ["SE", "GR"]}


def classic_header(frame: Frame) -> Any:
    """The header of a frame in a classic object's words; a classic object's own header as it is.

    Enhanced objects name what the scanner did differently; what has no classic word is left out.
    """
    if frame.header.get("SharedFunctionalGroupsSequence") is None:
        return frame.header
    header = need("pydicom.dataset", "writing DICOM").Dataset()
    header.update(frame.header)
    for keyword, (macro, name) in _RENAMED.items():
        group = frame.macro(macro)
        value = None if group is None else group.get(name)
        if value is not None:
            setattr(header, keyword, decimals([value])[0] if isinstance(value, float) else value)
    if pulses := _PULSES.get(str(frame.header.get("EchoPulseSequence") or "")):
        planar = frame.header.get("EchoPlanarPulseSequence") == "YES"
        recovery = frame.header.get("InversionRecovery") == "YES"
        header.ScanningSequence = [*pulses, *["IR"] * recovery, *["EP"] * planar]
    if frame.header.get("ResonantNucleus"):
        header.ImagedNucleus = frame.header.ResonantNucleus
    when = str(frame.header.get("AcquisitionDateTime") or "")
    if len(when) >= 14:
        header.AcquisitionDate, header.AcquisitionTime = (
            when[:8],
            when[8:].partition("+")[0].partition("-")[0],
        )
    return header
