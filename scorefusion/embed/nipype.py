"""nipype: the command line as a node of a workflow, with typed inputs and outputs.

``import scorefusion.embed.nipype`` needs nipype: pip install 'scorefusion[nipype]'.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from nipype.interfaces.base import (
    CommandLine,
    CommandLineInputSpec,
    File,
    InputMultiPath,
    TraitedSpec,
    traits,
)

__all__ = ["Translate"]


class _InputFile(File):
    """A file that is there, by its absolute path: a node runs in a folder of its own.

    Links stay links (nipype's own `resolve` follows them), for the output is named after the input.
    """

    def validate(self, objekt: Any, name: str, value: Any, return_pathlike: bool = False) -> Any:
        return os.path.abspath(super().validate(objekt, name, value))


class TranslateInputs(CommandLineInputSpec):
    """What ``scorefusion translate`` takes; what is not set is the model's own choice."""

    in_files = InputMultiPath(
        _InputFile(exists=True), argstr="%s", position=-1, mandatory=True, desc="NIfTI files, one a condition"
    )
    out_file = File(
        argstr="--output %s",
        name_source=["in_files"],
        name_template="%s_translated.nii.gz",
        keep_extension=False,
        desc="where to write; beside the node's other files when not set",
    )
    model = traits.Str(
        "t1-sr4", argstr="--model %s", usedefault=True, desc="a bundled model, or a folder's absolute path"
    )
    strategy = traits.Str(argstr="--strategy %s", desc="how scores are fused")
    planes = traits.List(traits.Str, argstr="--plane %s...", desc="for single and alternate")
    solver = traits.Str(argstr="--solver %s", desc="the sampler")
    steps = traits.Range(low=1, argstr="--steps %d", desc="noise levels")
    samples = traits.Range(low=1, argstr="--samples %d", desc="how many are drawn and averaged")
    seed = traits.Int(0, argstr="--seed %d", usedefault=True, desc="of the noise")
    device = traits.Str(argstr="--device %s", desc="auto, cpu, cuda, cuda:1")
    dtype = traits.Enum("auto", "float32", "bfloat16", "float16", argstr="--dtype %s", desc="to compute in")
    max_memory = traits.Str(argstr="--max-memory %s", desc="the most memory to use, such as 9GB")
    whole = traits.Bool(argstr="--whole", desc="compute everywhere, not only around the foreground")
    mask = _InputFile(exists=True, argstr="--mask %s", desc="not 0 where voxels are missing")
    nan = traits.Enum("error", "zero", argstr="--nan %s", desc="what to do with NaN")
    assume_affine = traits.Bool(argstr="--assume-affine", desc="accept a header without orientation")
    output_dtype = traits.Enum("float32", "input", argstr="--output-dtype %s", desc="the stored type")
    spread_file = File(argstr="--spread %s", desc="also write the standard deviation over the samples")


class TranslateOutputs(TraitedSpec):
    """What it leaves."""

    out_file = File(exists=True, desc="the translated volume")
    spread_file = File(exists=True, desc="the standard deviation over the samples")


class Translate(CommandLine):
    """``scorefusion translate`` as a nipype interface, run by the Python that runs the workflow.

    >>> from scorefusion.embed.nipype import Translate
    >>> Translate(in_files=["t1.nii.gz"], steps=3).cmdline  # doctest: +SKIP
    'python -m scorefusion translate --quiet ... --steps 3 t1.nii.gz'
    """

    input_spec = TranslateInputs
    output_spec = TranslateOutputs
    _cmd = f"{sys.executable} -m scorefusion translate --quiet"

    def _list_outputs(self) -> dict[str, Any]:
        outputs: dict[str, Any] = super()._list_outputs()
        outputs["out_file"] = os.path.abspath(outputs["out_file"])
        if self.inputs.spread_file:
            outputs["spread_file"] = os.path.abspath(self.inputs.spread_file)
        return outputs
