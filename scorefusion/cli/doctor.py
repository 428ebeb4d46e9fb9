"""``scorefusion doctor``: what is present, what is missing, what to install."""


def doctor() -> None:
    """Say what is present on this machine, what is missing, and what to install for it.

    \b
    Example:
      scorefusion doctor
    """
    from scorefusion.cli.console import require_stdout
    from scorefusion.doctor import examine

    findings = examine()
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        mark = {"present": "ok", "missing": "MISSING", "optional": "without"}[finding.state]
        remedy = f" | {finding.remedy}" if finding.remedy else ""
        print(f"{mark:<7}  {finding.subject:<{width}}  {finding.detail}{remedy}")
    require_stdout()
