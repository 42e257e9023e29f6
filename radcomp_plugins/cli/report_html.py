"""report.html: one file with its style inside, readable on a phone, in light and dark; the pictures lie beside it."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from radcomp_plugins.cli.figures import megabytes, title_of

SWIPE_SCRIPT = """document.querySelectorAll('.swipe input').forEach(function (input) {
  input.addEventListener('input', function () { input.parentNode.style.setProperty('--at', input.value + '%'); });
});"""


def render_html(report: Mapping[str, Any]) -> str:
    """The page for a report of schema version 1, a function of nothing but the report."""
    style = files("radcomp_plugins.cli").joinpath("report.css").read_text("utf8")
    scene = report["scene"]["name"]
    methods = report["methods"]
    parts = [_header(report), *(_method(name, entry) for name, entry in methods.items()), _plot(), _timing(report)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>radcomp demo: {escape(scene)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + f"\n{_footer(report)}\n</main>\n<script>\n{SWIPE_SCRIPT}\n</script>\n</body>\n</html>\n"
    )


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign, and a true minus."""
    rounded = round(value, digits) or 0.0  # no minus zero
    return f"{rounded:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _header(report: Mapping[str, Any]) -> str:
    scene, methods = report["scene"], report["methods"]
    ratios = [f"{entry['ratio']:.1f} times smaller by {title_of(name)}" for name, entry in methods.items()]
    return (
        f'<p class="eyebrow">radcomp demo</p>\n<h1>{escape(scene["name"])}: {escape(", ".join(ratios))}</h1>\n'
        f"<p>A splat scene was trained from {scene['train_views']} views of {scene['width']}\N{MULTIPLICATION SIGN}"
        f"{scene['height']} pixels, then compressed and written to files. Each file was read and decoded again, and "
        f"measured on {scene['test_views']} held-out views that no training saw. The uncompressed scene, written as "
        "an ordinary .ply and measured in the same way, is called the teacher.</p>"
    )


def _method(name: str, entry: Mapping[str, Any]) -> str:
    title = escape(title_of(name))
    parts = [f"<h2>{title}</h2>", _facts(entry)]
    if entry["views"]:
        first = entry["views"][0]
        parts.append(f'<div class="pair">{_swipe(first, title)}{_results(entry, title)}</div>')
        parts.append(
            "<h3>Side by side</h3>\n<p>The lower strip enlarges, pixel by pixel, the boxed part where the compressed "
            f"picture differs most from the truth. Error maps show the mean absolute error: black is 0, light yellow "
            f"is {first['max_error']:g} of the full range and above.</p>"
        )
        parts += [_view(view, entry, title) for view in entry["views"]]
    else:
        parts.append(_results(entry, title))
    if entry["stages"]:
        parts.append(_stages(entry))
    parts.append(_files(name, entry))
    return "\n".join(parts)


def _facts(entry: Mapping[str, Any]) -> str:
    teacher, asset = entry["teacher"], entry["asset"]
    sizes = _way(megabytes(teacher["bytes"]), megabytes(asset["bytes"]))
    qualities = _way(f"PSNR {teacher['psnr']:.2f}", f"{asset['psnr']:.2f} dB")
    facts = [
        (f"{entry['ratio']:.1f}\N{MULTIPLICATION SIGN} smaller", sizes),
        (f"{signed(entry['delta_psnr'])} dB", qualities),
    ]
    if "gaussians" in teacher and "gaussians" in asset:
        share = 1 - asset["gaussians"] / teacher["gaussians"]
        facts.append((f"{share:.0%} pruned", _way(f"{teacher['gaussians']:,}", f"{asset['gaussians']:,} Gaussians")))
    if "frame_ms" in teacher and "frame_ms" in asset:
        speed = teacher["frame_ms"] / asset["frame_ms"]
        times = _way(f"{teacher['frame_ms']:.1f}", f"{asset['frame_ms']:.1f} ms a frame")
        change = f"{max(speed, 1 / speed):.2f}\N{MULTIPLICATION SIGN} {'faster' if speed >= 1 else 'slower'}"
        facts.append((change, times))
    cells = "".join(f'<div class="fact"><b>{head}</b><span>{text}</span></div>' for head, text in facts)
    return f'<div class="facts">{cells}</div>'


def _way(before: str, after: str) -> str:
    return f"{before} \N{RIGHTWARDS ARROW} {after}"


def _swipe(view: Mapping[str, Any], title: str) -> str:
    paths = view["files"]
    return (
        '<div class="panel"><div class="swipe">'
        f'<img src="{quote(paths["teacher"])}" alt="{escape(view["name"])}, the teacher">'
        f'<img class="over" src="{quote(paths["asset"])}" alt="{escape(view["name"])}, {title}">'
        f'<span class="left">Teacher</span><span class="right">{title}</span>'
        '<input type="range" min="0" max="100" value="50" aria-label="Boundary between the two pictures"></div></div>'
    )


def _results(entry: Mapping[str, Any], title: str) -> str:
    teacher, asset = entry["teacher"], entry["asset"]

    def row(label: str, key: str, form: str) -> list[str] | None:
        if teacher.get(key) is None and asset.get(key) is None:
            return None
        return [label, *("" if side.get(key) is None else format(side[key], form) for side in (teacher, asset))]

    rows = [
        row("bytes on disk", "bytes", ",d"),
        row("PSNR, dB", "psnr", ".2f"),
        row("SSIM", "ssim", ".4f"),
        row(f"LPIPS ({asset.get('lpips_net', '')})", "lpips", ".4f"),
        row("PSNR, worst view, dB", "worst_psnr", ".2f"),
        row("Gaussians", "gaussians", ",d"),
        row("SH degree", "sh_degree", "d"),
        row("frame, ms", "frame_ms", ".1f"),
    ]
    notes = []
    if asset.get("lpips") is None:
        notes.append(f"No LPIPS: {asset.get('lpips_reason', 'not measured')}.")
    if "frame_ms" in asset:
        size = f"{asset['frame_width']}\N{MULTIPLICATION SIGN}{asset['frame_height']}"
        notes.append(f"Frames of {size} pixels: median after warm-up, the two scenes in turn, same rasterizer.")
    table = _table(["decoded from disk", "teacher .ply", title], [cells for cells in rows if cells])
    return f'<div class="panel">{table}<small>{escape(" ".join(notes))}</small></div>'


def _view(view: Mapping[str, Any], entry: Mapping[str, Any], title: str) -> str:
    paths = view["files"]
    teacher = f"{megabytes(entry['teacher']['bytes'])}, {view['teacher_psnr']:.2f} dB"
    asset = f"{megabytes(entry['asset']['bytes'])}, {view['asset_psnr']:.2f} dB"
    tiles = [
        ("truth", "Ground truth", "held-out view"),
        ("teacher", "Teacher", teacher),
        ("asset", title, asset),
        ("teacher_error", "Error", "of the teacher"),
        ("asset_error", "Error", f"of {title}"),
    ]
    figures = "".join(_tile(paths[part], head, text, view) for part, head, text in tiles)
    whole = f'<a href="{quote(paths["sheet"])}">one picture</a>'
    heading = f"<h3>{escape(view['name'])} <small>({escape(view['why'])}; as {whole})</small></h3>"
    return f'<div class="panel">{heading}<div class="tiles">{figures}</div></div>'


def _tile(path: str, head: str, text: str, view: Mapping[str, Any]) -> str:
    left, top, width, height = view["crop"]
    full_width, full_height = view["width"], view["height"]
    outline = (
        f"left:{_percent(left, full_width)};top:{_percent(top, full_height)};"
        f"width:{_percent(width, full_width)};height:{_percent(height, full_height)}"
    )
    crop = (
        f"aspect-ratio:{width}/{height};background-image:url('{quote(path)}');"
        f"background-size:{_percent(full_width, width)} {_percent(full_height, height)};"
        f"background-position:{_percent(left, full_width - width)} {_percent(top, full_height - height)}"
    )
    return (
        f"<figure><figcaption><b>{escape(head)}</b>{escape(text)}</figcaption>"
        f'<div class="whole"><img src="{quote(path)}" loading="lazy" alt="{escape(view["name"])}, {escape(head)} '
        f'{escape(text)}"><i style="{outline}"></i></div><div class="crop" style="{crop}"></div></figure>'
    )


def _percent(part: float | int, whole: float | int) -> str:
    return f"{100 * part / whole:.3f}%" if whole else "0%"


def _stages(entry: Mapping[str, Any]) -> str:
    rows = []
    for row in entry["stages"]:
        difference = signed(row["psnr"] - entry["stages"][0]["psnr"])
        degree = str(row.get("sh_degree", ""))
        size, psnr, ssim = megabytes(row["estimated_bytes"]), f"{row['psnr']:.2f}", f"{row['ssim']:.4f}"
        rows.append([row["stage"], f"{row['gaussians']:,}", degree, size, psnr, difference, ssim])
    asset = entry["asset"]
    name = PurePosixPath(asset["path"]).name
    last = [f"decoded {name}", f"{asset.get('gaussians', 0):,}", str(asset.get("sh_degree", ""))]
    last += [megabytes(asset["bytes"]), f"{asset['psnr']:.2f}", "", f"{asset['ssim']:.4f}"]
    head = ["stage", "Gaussians", "SH", "estimated size", "PSNR, dB", "to first", "SSIM"]
    note = (
        "Measured before and after the training of each stage, on the validation views; the last line is the size of "
        "the file itself, and its quality on the test views after decoding. Estimates are of a .sog file."
    )
    return f'<h3>Stage by stage</h3>\n<div class="panel">{_table(head, [*rows, last], note, final=True)}</div>'


def _files(name: str, entry: Mapping[str, Any]) -> str:
    asset = entry["asset"]
    lines = [f"{asset['path']}   {asset['bytes']:,} bytes"]
    if "run" in asset:
        lines.append(f"ns-viewer --load-config {asset['run']}")
    return (
        "<h3>Open it</h3>\n<p>Splat viewers on the web, such as SuperSplat, open the file itself; nerfstudio shows "
        "the decoded file (paths are relative to this report):</p>\n"
        f"<pre>{escape(chr(10).join(lines))}</pre>"
    )


def _plot() -> str:
    return (
        '<h2>Size against quality</h2>\n<div class="panel"><picture>'
        '<source srcset="images/size_psnr_dark.png" media="(prefers-color-scheme: dark)">'
        '<img src="images/size_psnr.png" alt="PSNR against size in MB, logarithmic"></picture></div>\n'
        '<p><small>The numbers are in <a href="images/size_psnr.csv">size_psnr.csv</a>.</small></p>'
    )


def _timing(report: Mapping[str, Any]) -> str:
    blocks = ["<h2>Time</h2>"]
    for name, entry in report["methods"].items():
        seconds = entry["seconds"]
        longest, total = max(seconds.values(), default=0.0), sum(seconds.values())
        rows = "".join(
            f'<tr><td>{escape(stage)}</td><td>{value:.1f} s</td><td class="bar">'
            f'<div style="width:{_percent(value, longest)}"></div></td></tr>'
            for stage, value in seconds.items()
        )
        caption = f"<caption>{escape(title_of(name))}: {total:.0f} s in all, compilation of the kernels included"
        blocks.append(f'<div class="panel scroll"><table>{caption}</caption>{rows}</table></div>')
    return "\n".join(blocks)


def _footer(report: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        f"<footer>Measured on {escape(report['device'])}. {escape(versions)}. "
        'All numbers are in <a href="report.json">report.json</a>.</footer>'
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], note: str = "", *, final: bool = False) -> str:
    lines = list(rows)
    body = ""
    for index, cells in enumerate(lines):
        mark = ' class="final"' if final and index == len(lines) - 1 else ""
        body += f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    below = f"<small>{escape(note)}</small>" if note else ""
    return f'<div class="scroll"><table><tr>{heads}</tr>{body}</table></div>{below}'
