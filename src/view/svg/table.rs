//! Tables as SVG.

use super::super::color_scale::is_dark;
use super::super::table::Table;
use super::super::visible::{cut, visible, width};
use super::maps::color_bar;
use super::{hex, Anchor, Svg, LETTER, MARGIN};

const LINE: f64 = 20.0;
/// The most letters of a cell.
const CELL: usize = 14;

pub(super) fn table(table: &Table) -> Svg {
    let mut svg = Svg::new();
    let label = |text: &str, len: usize| cut(visible(text).trim_start(), len);
    let first = table.rows.iter().chain([&table.corner]).map(|row| width(&label(row, 24))).fold(0.0, f64::max);
    let mut x = MARGIN + first * LETTER + 12.0;
    svg.text((MARGIN, MARGIN + 13.0), Anchor::Start, &table.corner);
    for (row, text) in table.rows.iter().enumerate() {
        svg.text((MARGIN, MARGIN + (row + 1) as f64 * LINE + 14.0), Anchor::Start, &label(text, 24));
    }
    for (column, heading) in table.columns.iter().enumerate() {
        let cells: Vec<String> = (0..table.rows.len()).map(|row| label(table.cell(row, column), CELL)).collect();
        let heading = label(heading, CELL);
        let widest = cells.iter().chain([&heading]).map(|cell| width(cell)).fold(0.0, f64::max) * LETTER + 8.0;
        svg.text((x + 4.0, MARGIN + 13.0), Anchor::Start, &heading);
        for (row, cell) in cells.iter().enumerate() {
            let y = MARGIN + (row + 1) as f64 * LINE;
            let value = table.values.get(row * table.columns.len() + column).copied().unwrap_or(f32::NAN);
            let color = table.scale.color(value);
            let mut ink = "currentColor";
            if !value.is_nan() {
                svg.rect((x, y), (widest, LINE - 1.0), &hex(color));
                ink = if is_dark(color) { "#ffffff" } else { "#1a1a1a" };
            }
            svg.text_in((x + 4.0, y + 14.0), Anchor::Start, cell, ink);
        }
        x += widest + 1.0;
    }
    svg.line((MARGIN, MARGIN + LINE - 1.5), (x, MARGIN + LINE - 1.5), 0.6);
    if table.values.iter().any(|value| !value.is_nan()) {
        let top = svg.height + 12.0;
        color_bar(&mut svg, table.scale, &table.value_name, (MARGIN, top));
    }
    svg
}
