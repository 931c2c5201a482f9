//! Figures as plain text, for terminals: at most 100 columns, and as many rows as tables of this crate print.

use std::fmt;

use super::figure::{Drawing, Figure};
use super::table::Table;
use super::visible::{cut, number, quoted, visible, width};

/// The widest line.
const WIDTH: usize = 100;
/// The widest cell, and the widest label of a row.
const CELL: usize = 14;
const LABEL: usize = 28;
/// The most rows, panels, tokens and edges that are printed.
const ROWS: usize = 100;
const PANELS: usize = 8;

impl fmt::Display for Figure {
    /// Title, values as a table, and caption. Of long figures the first part, with how much more there is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", visible(self.title()))?;
        match self.drawing() {
            Drawing::Patterns(patterns) => {
                let panels: Vec<(usize, usize)> = patterns.panels().collect();
                for (panel, (layer, head)) in panels.iter().enumerate().take(PANELS) {
                    writeln!(f, "L{layer}H{head}, a row for each query, a column for each key")?;
                    let values = match patterns.values(panel) {
                        Ok(values) => values,
                        // To print is no place to fail.
                        Err(error) => return error.fmt(f),
                    };
                    grid(f, "", &patterns.queries, &patterns.keys, |row, column| {
                        values.get(row * patterns.keys.len() + column).map_or(String::new(), |v| format!("{v:.2}"))
                    })?;
                }
                more(f, "heads", panels.len(), PANELS)?;
            }
            Drawing::HeatMap(map) => {
                for (panel, label) in map.panels.labels.iter().enumerate().take(PANELS) {
                    if !label.is_empty() {
                        writeln!(f, "{}", visible(label))?;
                    }
                    let values = map.panel(panel);
                    grid(f, &map.rows.name, &map.rows.labels, &map.columns.labels, |row, column| {
                        number(f64::from(values[row * map.columns.len() + column]))
                    })?;
                }
                more(f, "panels", map.panels.len(), PANELS)?;
            }
            Drawing::Tokens(strip) => {
                let names: Vec<String> = strip.series.iter().map(|series| series.name.clone()).collect();
                let likeliest = strip.top.as_ref().map(|top| format!("likeliest, {}", top.value_name));
                let columns: Vec<String> = names.into_iter().chain(likeliest).collect();
                let rows: Vec<String> = strip.tokens.iter().map(|token| quoted(token)).collect();
                grid(f, "token", &rows, &columns, |row, column| match strip.series.get(column) {
                    Some(series) => number(f64::from(series.values[row])),
                    None => strip
                        .top
                        .as_ref()
                        .and_then(|top| top.list(row).next().map(|(token, _)| quoted(token)))
                        .unwrap_or_default(),
                })?;
            }
            Drawing::Table(Table { corner, rows, columns, cells, .. }) => {
                grid(f, corner, rows, columns, |row, column| visible(&cells[row * columns.len() + column]))?;
            }
            Drawing::Bars(chart) => {
                let largest =
                    chart.values.iter().map(|value| value.abs()).filter(|v| v.is_finite()).fold(0.0, f32::max);
                let label = |i: usize| cut(&visible(&chart.labels[i]), LABEL);
                let first = (0..chart.labels.len()).map(|i| width(&label(i)) as usize).max().unwrap_or(0);
                for (i, value) in chart.values.iter().enumerate().take(ROWS) {
                    let share = if largest > 0.0 && value.is_finite() { value.abs() / largest } else { 0.0 };
                    let bar = if *value < 0.0 { "▒" } else { "█" }.repeat((share * 30.0).round() as usize);
                    let line = format!("{}  {:>9}  {bar}", padded(&label(i), first), number(f64::from(*value)));
                    writeln!(f, "{}", line.trim_end())?;
                }
                more(f, "bars", chart.values.len(), ROWS)?;
            }
            Drawing::Lines(plot) => {
                let columns: Vec<String> = plot.lines.iter().map(|(name, _)| name.clone()).collect();
                grid(f, &plot.axis.name, &plot.axis.labels, &columns, |row, column| {
                    number(f64::from(plot.lines[column].1[row]))
                })?;
            }
            Drawing::Graph(graph) => {
                let mut edges: Vec<_> = graph.edges.iter().collect();
                edges.sort_by(|a, b| b.weight.abs().total_cmp(&a.weight.abs()));
                let label = |node: usize| visible(&graph.nodes[node].label);
                for edge in edges.iter().take(ROWS) {
                    writeln!(f, "{} → {}  {}", label(edge.from), label(edge.to), number(f64::from(edge.weight)))?;
                }
                more(f, "edges", edges.len(), ROWS)?;
            }
        }
        write!(f, "{}", visible(self.caption()))
    }
}

fn more(f: &mut fmt::Formatter<'_>, what: &str, count: usize, shown: usize) -> fmt::Result {
    match count > shown {
        true => writeln!(f, "… {} more {what}", count - shown),
        false => Ok(()),
    }
}

/// `text` filled up with spaces to a width.
fn padded(text: &str, len: usize) -> String {
    format!("{text}{}", " ".repeat(len.saturating_sub(width(text) as usize)))
}

/// A table, in blocks of columns that fit.
fn grid(
    f: &mut fmt::Formatter<'_>,
    corner: &str,
    rows: &[String],
    columns: &[String],
    cell: impl Fn(usize, usize) -> String,
) -> fmt::Result {
    let shown = rows.len().min(ROWS);
    let corner = &visible(corner);
    let labels: Vec<String> = rows[..shown].iter().map(|row| cut(&visible(row), LABEL)).collect();
    let first = labels.iter().map(|label| width(label)).fold(width(corner), f64::max) as usize;
    let mut start = 0;
    while start < columns.len() {
        let mut block: Vec<(Vec<String>, usize)> = Vec::new();
        let mut len = first;
        for (i, heading) in columns[start..].iter().enumerate() {
            let column = start + i;
            let texts: Vec<String> = std::iter::once(visible(heading))
                .chain((0..shown).map(|row| cell(row, column)))
                .map(|text| cut(&text, CELL))
                .collect();
            let widest = texts.iter().map(|text| width(text)).fold(0.0, f64::max) as usize;
            if len + 2 + widest > WIDTH && !block.is_empty() {
                break;
            }
            len += 2 + widest;
            block.push((texts, widest));
        }
        for (line, label) in std::iter::once(corner.as_str()).chain(labels.iter().map(String::as_str)).enumerate() {
            let mut text = padded(label, first);
            for (texts, widest) in &block {
                let cell = &texts[line];
                text += &format!("  {}{cell}", " ".repeat(widest.saturating_sub(width(cell) as usize)));
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        more(f, "rows", rows.len(), shown)?;
        start += block.len();
        if start < columns.len() {
            writeln!(f)?;
        }
    }
    Ok(())
}
