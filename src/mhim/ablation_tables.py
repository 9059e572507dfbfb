"""The ablation study as tables: CSV for programs, Markdown in the layout of the talk for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mhim.ablation import PUBLISHED_COLUMNS, TABLES, Cell, Planned, Study, rows_of
from mhim.evaluation import Estimate
from mhim.protocols import protocol

Cells = Mapping[tuple[str, str], Cell]
_COLUMN = {"abmil": (0, 2), "transmil": (1, 3)}


def csv_table(study: Study, cells: Cells) -> pd.DataFrame:
    """One line per table, row and aggregator; AUROC in [0, 1], published AUC in percent as printed."""
    return pd.DataFrame([_record(table, row, model, cells) for table, row in rows_of(study) for model in study.models])


def _record(table: str, row: Any, model: str, cells: Cells) -> dict[str, Any]:
    cell = cells[model, row.variant]
    published = [row.published[index] for index in _COLUMN.get(model, ())] or [None, None]
    return {
        "table": table,
        "row": row.label,
        "variant": row.variant,
        "model": model,
        "seeds": cell.seeds,
        "folds": cell.folds,
        **_columns("auroc", cell.auroc),
        "auroc_seed_std": cell.seed_std,
        **_columns("difference", cell.difference),
        "published_auc_camelyon16": published[0],
        "published_auc_tcga_nsclc": published[1],
    }


def _columns(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    low, high = (estimate and estimate.interval) or (None, None)
    return {name: estimate and estimate.value, f"{name}_low": low, f"{name}_high": high}


def text_table(study: Study, cells: Cells, table: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one table in the talk's layout: what was measured here, then what was published."""
    header = [table, *(f"here: {model}" for model in study.models), *(f"talk: {name}" for name in PUBLISHED_COLUMNS)]
    rows = [
        [
            row.label,
            *(_measured(cells[model, row.variant]) for model in study.models),
            *(f"{value:.2f}" for value in row.published),
        ]
        for row in TABLES[table]
    ]
    return header, rows


def _measured(cell: Cell) -> str:
    """``95.10 ± 0.40 (+1.20 [-0.50, 2.80])``, in percent as in the talk."""
    if cell.auroc.value is None:
        return "-"
    text = f"{100 * cell.auroc.value:.2f}"
    if cell.seed_std is not None:
        text += f" ± {100 * cell.seed_std:.2f}"
    if cell.difference is None or cell.difference.value is None:
        return text
    text += f" ({100 * cell.difference.value:+.2f}"
    if cell.difference.interval is not None:
        low, high = cell.difference.interval
        text += f" [{100 * low:+.2f}, {100 * high:+.2f}]"
    return text + ")"


def said_protocol(study: Study, planned: Sequence[Planned]) -> list[str]:
    """Sentences that say how both sides were measured, and that they are not the same measurement."""
    plan = planned[0].plan
    many = f"{len(study.seeds)} seed{'s' * (len(study.seeds) > 1)}"
    here = protocol(plan.config.protocol)
    chose = here.caution or "an inner validation part chose the epoch, the test parts were scored once"
    other = " and, for CAMELYON16, another protocol" if here.is_honest else ""
    return [
        f"Here: {Path(plan.cohort.source).name}, {len(plan.cohort.case_labels())} cases, {len(plan.cohort)} slides, "
        f"{len(plan.splits.folds)} folds by case, {many}; {chose}. "
        f"Mean test AUROC over folds and seeds in percent, ± standard deviation over seeds; in "
        f"brackets the difference to the plain baseline with its 95 % interval (cases resampled, same draws).",
        f"Method settings as published for {'CAMELYON16' if study.like == 'camelyon16' else 'TCGA-NSCLC'}.",
        "Talk: AUC of CAMELYON16 (3 folds, 3 seeds; the epoch was chosen on the test fold, there was no validation "
        "part) and TCGA-NSCLC (4 folds, 1 seed, a validation part), ICCV 2023, tables 3 to 5. Other "
        f"slides{other}: the columns are not comparable with each other, only their order within.",
    ]


def markdown(study: Study, planned: Sequence[Planned], cells: Cells) -> str:
    """All tables in Markdown, with the protocol."""
    lines: list[str] = ["# Ablation of MHIM", ""]
    for table in study.tables:
        header, rows = text_table(study, cells, table)
        lines += ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)]
        lines.append("")
    return "\n".join([*lines, *(f"{sentence}\n" for sentence in said_protocol(study, planned))])
