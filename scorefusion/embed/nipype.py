"""nipype: the command line as a node of a workflow, with typed inputs and outputs.

``import scorefusion.embed.nipype`` needs nipype: pip install 'scorefusion[nipype]'.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from nipype import logging
from nipype.interfaces import base
from nipype.interfaces.base import File, traits

from scorefusion.pipeline import Machine, Option, Options, declared, described, type_of

__all__ = ["Translate"]

_STREAMS = {
    "file": {"output.nipype": "merged"},
    "file_split": {"stdout.nipype": "stdout", "stderr.nipype": "stderr"},
    "file_stdout": {"stdout.nipype": "stdout"},
    "file_stderr": {"stderr.nipype": "stderr"},
}
"""Files that nipype's settings of ``terminal_output`` ask for, and what goes into each."""


class _InputFile(File):
    """A file that is there, by its absolute path: a node runs in a folder of its own.

    Links stay links (nipype's own `resolve` follows them), for the output is named after the input.
    """

    def validate(self, objekt: Any, name: str, value: Any, return_pathlike: bool = False) -> Any:
        return os.path.abspath(super().validate(objekt, name, value))


class TranslateInputs(base.CommandLineInputSpec):
    """What ``scorefusion translate`` takes; what is not set is the model's own choice."""

    in_files = base.InputMultiPath(
        _InputFile(exists=True),
        argstr="%s",
        position=-1,
        mandatory=True,
        desc="NIfTI files, one per condition",
    )
    out_file = File(
        argstr="--output %s",
        name_source=["in_files"],
        name_template="%s_translated.nii.gz",
        keep_extension=False,
        desc="where to write; beside the node's other files when not set",
    )
    model = traits.Str(
        "auto", argstr="--model %s", usedefault=True, desc="a bundled model, or a folder's absolute path"
    )
    seed = traits.Int(0, argstr="--seed %d", usedefault=True, desc="seed of the noise")
    mask = _InputFile(exists=True, argstr="--mask %s", desc="not 0 where voxels are missing")
    spread_file = File(argstr="--spread %s", desc="also write the standard deviation over the samples")
    error_bar_file = File(argstr="--error-bar %s", desc="also write how far off each voxel is at most")


def _trait(kind: str, option: Option, flag: str) -> Any:
    """The trait of an option of the command line whose type is ``kind``."""
    desc = described(option.off or option.help)
    if option.choices:
        return traits.Enum(*option.choices, argstr=f"{flag} %s", desc=desc)
    if "bool" in kind:
        return traits.Bool(argstr=flag, desc=desc)
    if "list" in kind:
        return traits.List(traits.Str, argstr=f"{flag} %s...", desc=desc)
    if option.least is not None:
        return traits.Range(low=option.least, argstr=f"{flag} %d", desc=desc)
    return (traits.Float if "float" in kind else traits.Str)(argstr=f"{flag} %s", desc=desc)


for _table in (Options, Machine):
    for _name, _option in declared(_table).items():
        _flag, _kind = _option.flag or f"--{_name.replace('_', '-')}", str(type_of(_table, _name, cli=True))
        if _name not in TranslateInputs.class_trait_names():
            TranslateInputs.add_class_trait(
                _flag.strip("-") if _option.off else _name, _trait(_kind, _option, _flag)
            )


class TranslateOutputs(base.TraitedSpec):
    """What it leaves."""

    out_file = File(exists=True, desc="the translated volume")
    spread_file = File(exists=True, desc="the standard deviation over the samples")
    error_bar_file = File(exists=True, desc="how far off each voxel is at most, for a share of them")
    planes_file = File(exists=True, desc="with disagreement, the standard deviation over the planes")


class Translate(base.CommandLine):
    """``scorefusion translate`` as a nipype interface, run by the Python that runs the workflow.

    Every value is quoted in ``cmdline``, and no shell runs it, so a path may hold any character. Text in
    ``args`` is split into arguments as a shell would, and nothing in it is expanded or run. Warnings about
    the input are in ``runtime.stderr`` and, depending on ``terminal_output``, in nipype's log or a file.

    >>> from scorefusion.embed.nipype import Translate
    >>> Translate(in_files=["t1.nii.gz"], steps=3).cmdline  # doctest: +SKIP
    'python -m scorefusion translate ... --steps 3 -- t1.nii.gz'
    """

    input_spec = TranslateInputs
    output_spec = TranslateOutputs
    _cmd = shlex.join([sys.executable, "-m", "scorefusion", "translate"])

    def _format_arg(self, name: str, trait_spec: Any, value: Any) -> Any:
        """One input as text of the command line, each value quoted; nipype quotes single paths alone."""
        if name == "args" or isinstance(value, bool):
            return super()._format_arg(name, trait_spec, value)
        values = [shlex.quote(str(each)) for each in (value if isinstance(value, list) else [value])]
        pattern = trait_spec.argstr.replace("%d", "%s")
        if pattern.endswith("..."):
            return " ".join(pattern.removesuffix("...") % each for each in values)
        text: str = pattern % " ".join(values)
        return f"-- {text}" if name == "in_files" else text

    def _run_interface(self, runtime: Any, correct_return_codes: Any = (0,)) -> Any:
        """Run the command without a shell, to which nipype would hand it."""
        runtime.cmdline, runtime.success_codes = self.cmdline, correct_return_codes
        runtime.environ.update(self.inputs.environ)
        command = shlex.split(runtime.cmdline)
        runtime.command_path, runtime.dependencies = command[0], "<skipped>"
        if self.write_cmdline:
            Path(runtime.cwd, "command.txt").write_text(runtime.cmdline, encoding="utf-8")
        done = subprocess.run(
            command,
            cwd=runtime.cwd,
            env=runtime.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        runtime.returncode, runtime.stdout, runtime.stderr = done.returncode, done.stdout, done.stderr
        runtime.merged = done.stdout + done.stderr
        for file, stream in _STREAMS.get(self.terminal_output, {}).items():
            Path(runtime.cwd, file).write_text(getattr(runtime, stream), encoding="utf-8")
        if self.terminal_output == "stream":
            for line in runtime.merged.splitlines():
                logging.getLogger("nipype.interface").info(line)
        if runtime.returncode not in correct_return_codes:
            self.raise_exception(runtime)
        return runtime

    def _list_outputs(self) -> dict[str, Any]:
        outputs: dict[str, Any] = super()._list_outputs()
        outputs["out_file"] = os.path.abspath(outputs["out_file"])
        for name in ("spread_file", "error_bar_file"):
            if path := getattr(self.inputs, name):
                outputs[name] = os.path.abspath(path)
        if self.inputs.disagreement:
            from scorefusion.pipeline import side_path

            outputs["planes_file"] = str(side_path(Path(outputs["out_file"]), "planes"))
        return outputs
