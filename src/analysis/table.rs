//! How labelled values print: a table of at most 80 characters a line, in as many blocks of columns as that takes.

use std::fmt;

use super::labelled::{LabelledTensor, Quantity};

/// The longest line.
const WIDTH: usize = 80;
/// The widest cell.
const CELL: usize = 16;
/// The most rows that are printed.
const ROWS: usize = 100;

impl<Q: Quantity> fmt::Display for LabelledTensor<Q> {
    /// A table with a line for each row and a column for each position, in blocks of up to 80 characters a line, one after the other
    /// for each row of the batch. Of more than 100 rows, the first are printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cells = match Q::cells(self) {
            Ok(cells) => cells,
            // To print is no place to fail.
            Err(error) => return error.fmt(f),
        };
        let (batch, pos) = self.window().size();
        let (rows, columns) = self.window().labels();
        let (batch, pos) =
            (if rows.is_some() { batch as usize } else { 1 }, if columns.is_some() { pos as usize } else { 1 });
        let labels = self.labels();
        for b in 0..batch {
            let row = rows.as_ref().and_then(|rows| rows.get(b)).copied();
            if batch > 1
                && let Some(row) = row
            {
                writeln!(f, "{}batch row {row}", if b == 0 { "" } else { "\n" })?;
            }
            let headings: Vec<Vec<String>> = match columns {
                Some(columns) => columns.of_row(b).into_iter().map(|column| self.heading(row, column)).collect(),
                None => vec![vec!["mean".into()]],
            };
            let cell = |row: usize, column: usize| cells[(row * batch + b) * pos + column].as_str();
            write_table(f, &labels, &headings, cell, b + 1 == batch)?;
        }
        Ok(())
    }
}

impl<Q: Quantity> LabelledTensor<Q> {
    /// The lines above a column: its number and, where it is one token, that.
    fn heading(&self, row: Option<i64>, column: i64) -> Vec<String> {
        let mut heading = vec![column.to_string()];
        let token = row.and_then(|row| {
            let place = column - self.cache().past();
            let id = self.cache().tokens().ids.f_int64_value(&[row, place]).ok()?;
            self.cache().tokenizer().ok()?.single_str_token(id).ok()
        });
        heading.extend(token.map(|token| quoted(&token)));
        heading
    }
}

/// A token in quotes, so that its space is visible.
pub(crate) fn quoted(token: &str) -> String {
    format!("{token:?}")
}

/// `text` of at most `width` characters.
fn shortened(text: &str, width: usize) -> String {
    match text.chars().count() <= width {
        true => text.into(),
        false => text.chars().take(width - 1).chain(['…']).collect(),
    }
}

/// Writes one table, in blocks of columns that are as many as fit.
fn write_table<'c>(
    f: &mut fmt::Formatter<'_>,
    labels: &[String],
    headings: &[Vec<String>],
    cell: impl Fn(usize, usize) -> &'c str,
    last: bool,
) -> fmt::Result {
    let shown = labels.len().min(ROWS);
    let first = labels[..shown].iter().map(|label| label.chars().count()).max().unwrap_or(0).min(WIDTH / 3);
    let width = |column: usize| {
        let heading = headings[column].iter().map(|line| line.chars().count()).max().unwrap_or(0);
        let cells = (0..shown).map(|row| cell(row, column).chars().count()).max().unwrap_or(0);
        heading.max(cells).min(CELL)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut start = 0;
    loop {
        let mut end = start;
        let mut line = first;
        while end < widths.len() && (line + 2 + widths[end] <= WIDTH || end == start) {
            line += 2 + widths[end];
            end += 1;
        }
        let put = |f: &mut fmt::Formatter<'_>, label: &str, text: &dyn Fn(usize) -> String| {
            let mut line = format!("{:<first$}", shortened(label, first));
            for (column, width) in (start..end).zip(&widths[start..end]) {
                line += &format!("  {:>width$}", shortened(&text(column), *width), width = *width);
            }
            write!(f, "{}", line.trim_end())
        };
        for i in 0..headings.iter().map(Vec::len).max().unwrap_or(0) {
            put(f, "", &|column| headings[column].get(i).cloned().unwrap_or_default())?;
            writeln!(f)?;
        }
        for (row, label) in labels[..shown].iter().enumerate() {
            put(f, label, &|column| cell(row, column).into())?;
            let is_end = last && end == widths.len() && row + 1 == shown && shown == labels.len();
            if !is_end {
                writeln!(f)?;
            }
        }
        if shown < labels.len() {
            write!(f, "… {} more rows", labels.len() - shown)?;
            if !(last && end == widths.len()) {
                writeln!(f)?;
            }
        }
        if end == widths.len() {
            return Ok(());
        }
        writeln!(f)?;
        start = end;
    }
}
