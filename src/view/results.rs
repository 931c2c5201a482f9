//! How the crate's results are drawn.

use tch::{Device, Kind, Tensor};

use super::bar_chart::BarChart;
use super::color_scale::ColorScale;
use super::figure::{Draw, Figure};
use super::heat_map::{HeatMap, HeatMapAxis};
use super::table::Table;
use super::top_tokens::TopTokens;
use super::visible::{number, quoted, visible};
use crate::analysis::{Attribution, LogitLens, Ranking, Ranks};
use crate::cache::ActivationCache;
use crate::component::Component;
use crate::hooked_transformer::{PromptTest, RankedToken};
use crate::patching::MetricMap;
use crate::{Error, Result};

/// The most bars of a chart: half of them the largest values, half the smallest.
const BARS: usize = 40;
/// How many tokens are listed behind a cell of a lens.
pub(super) const LISTED: i64 = 10;

/// All numbers of a tensor, in its order.
pub(super) fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    let flat = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_reshape(-1)?;
    Ok(Vec::<f32>::try_from(flat)?)
}

/// The tokens at some columns of a row of the batch; their numbers where there is no text.
pub(super) fn token_labels(cache: &ActivationCache, row: usize, columns: &[i64]) -> Vec<String> {
    let label = |column: i64| {
        let place = column - cache.past();
        let ids = &cache.tokens().ids;
        let held = ids.dim() == 2 && place >= 0 && place < ids.size()[1] && (row as i64) < ids.size()[0];
        let id = held.then(|| ids.f_int64_value(&[row as i64, place]).ok()).flatten();
        match (id, cache.tokenizer()) {
            (Some(id), Ok(tokenizer)) => tokenizer.text_or_number(id),
            _ => format!("position {column}"),
        }
    };
    columns.iter().copied().map(label).collect()
}

/// The axes of labelled values: rows of the batch and token columns, with the tokens of each.
struct LabelledAxes {
    batch: HeatMapAxis,
    /// The tokens, the same for all rows of the batch; their numbers where the tokens differ.
    positions: HeatMapAxis,
}

impl LabelledAxes {
    fn new(cache: &ActivationCache, (rows, columns): (Option<Vec<i64>>, Option<&crate::Columns>)) -> Self {
        let rows = rows.unwrap_or_default();
        let tokens: Vec<Vec<String>> = match columns {
            Some(columns) => {
                let of_row = |(place, row): (usize, &i64)| token_labels(cache, *row as usize, &columns.of_row(place));
                rows.iter().enumerate().map(of_row).collect()
            }
            None => Vec::new(),
        };
        let positions = match (columns, tokens.as_slice()) {
            (None, _) => vec!["mean".to_string()],
            (Some(_), [first, others @ ..]) if others.iter().all(|other| other == first) => first.clone(),
            (Some(columns), _) => (0..columns.len())
                .map(|place| match columns.of_row(0).get(place) {
                    Some(column) if !columns.is_per_row() => format!("position {column}"),
                    _ => "chosen".into(),
                })
                .collect(),
        };
        let batch = match rows.as_slice() {
            // One row, or their mean, needs no name.
            [] | [_] => vec![String::new()],
            rows => rows.iter().map(|row| format!("row {row}")).collect(),
        };
        LabelledAxes { batch: HeatMapAxis::new("batch", batch), positions: HeatMapAxis::new("position", positions) }
    }
}

impl Draw for Attribution {
    /// Of one position: layer × head where the rows are all heads, else bars of the largest and smallest rows. Of several: row ×
    /// position, a panel for each row of the batch.
    fn figure(&self) -> Result<Figure> {
        let axes = LabelledAxes::new(self.cache(), self.window().labels());
        let (n_batch, n_pos) = (axes.batch.len(), axes.positions.len());
        let title = "Logit attribution";
        const CAPTION: &str = "What each part adds to the logit, or to the difference of two.";
        if n_batch * n_pos == 1 {
            let values = floats(self.values())?;
            if is_grid_of_heads(self.rows()) {
                let by_head = self.by_head()?; // [layer, head], and axes of length one where they are kept
                let map = HeatMap::by_head(&by_head.f_reshape(&by_head.size()[..2])?)?;
                return Ok(Figure::new(format!("{title} by head"), map.value_name("logit")).with_caption(CAPTION));
            }
            let rows: Vec<(String, f32)> = self.labels().into_iter().zip(values).collect();
            let (chart, left_out) = bars(rows)?;
            return Ok(Figure::new(title, chart).with_caption(format!("{CAPTION}{left_out}")));
        }
        // [row, batch, pos, 1] to [batch, row, pos]
        let values = floats(&self.values().f_squeeze_dim(-1)?.f_permute([1i64, 0, 2].as_slice())?)?;
        let rows = HeatMapAxis::new("component", self.labels());
        let map = HeatMap::with_panels(axes.batch, rows, axes.positions, values)?.value_name("logit");
        Ok(Figure::new(title, map).with_caption(CAPTION))
    }
}

/// Whether the rows are all heads of all layers, in their order, and nothing else.
fn is_grid_of_heads(rows: &[Component]) -> bool {
    let n_heads = rows.iter().take_while(|row| row.layer() == Some(0)).count();
    let is_at = |(i, row): (usize, &Component)| match row {
        Component::Head { layer, head } => n_heads > 0 && (*layer, *head) == (i / n_heads, i % n_heads),
        _ => false,
    };
    n_heads > 0 && rows.len().is_multiple_of(n_heads) && rows.iter().enumerate().all(is_at)
}

/// Bars in descending order, and a sentence on those that are left out: of many, the largest and the smallest are drawn.
fn bars(mut rows: Vec<(String, f32)>) -> Result<(BarChart, String)> {
    rows.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut left_out = String::new();
    if rows.len() > BARS {
        let between = rows.drain(BARS / 2..rows.len() - BARS / 2);
        let (count, sum) = between.fold((0, 0.0), |(count, sum), (_, value)| (count + 1, sum + f64::from(value)));
        left_out = format!(
            " The {count} rows between the largest and the smallest are left out; together they add {}.",
            number(sum)
        );
    }
    let (labels, values): (Vec<String>, Vec<f32>) = rows.into_iter().unzip();
    Ok((BarChart::new("logit", labels, values)?, left_out))
}

impl Draw for Ranking {
    fn figure(&self) -> Result<Figure> {
        let labels = self.rows.iter().map(|(row, _)| row.to_string());
        let values = self.rows.iter().map(|(_, value)| *value as f32).collect();
        let caption = format!("All rows and constants together: {}.", number(self.total));
        Ok(Figure::new("Ranking", BarChart::new("logit", labels, values)?).with_caption(caption))
    }
}

impl Draw for LogitLens {
    /// The likeliest token of each row and position, coloured by its probability, with the ten likeliest behind it. The streams are in
    /// the order of the data, the first at the top.
    fn figure(&self) -> Result<Figure> {
        let axes = LabelledAxes::new(self.cache(), self.window().labels());
        let n_batch = axes.batch.len();
        let probs = self.values().f_softmax(-1, Kind::Float)?; // [row, batch, pos, d_vocab_out]
        let k = LISTED.min(probs.size()[3]);
        let (values, ids) = probs.f_topk(k, -1, true, true)?; // [row, batch, pos, k]
                                                              // A row of the table for each row of the batch and of the lens.
        let order = |tensor: &Tensor| tensor.f_permute([1i64, 0, 2, 3].as_slice());
        let values = floats(&order(&values)?)?;
        let ids = Vec::<i64>::try_from(order(&ids)?.f_reshape(-1)?.f_to_device(Device::Cpu)?)?;
        let text = |id: &i64| match self.cache().tokenizer() {
            Ok(tokenizer) => tokenizer.text_or_number(*id),
            Err(_) => format!("<id {id}>"),
        };
        let pairs: Vec<(String, f32)> = ids.iter().map(text).zip(values).collect();
        let lists: Vec<Vec<(String, f32)>> = pairs.chunks(k.max(1) as usize).map(<[_]>::to_vec).collect();
        let first = |list: &Vec<(String, f32)>| list.first().cloned().unwrap_or_default();
        let (cells, best): (Vec<String>, Vec<f32>) = lists.iter().map(first).unzip();
        let rows: Vec<String> = (axes.batch.labels.iter())
            .flat_map(|row| {
                self.labels().into_iter().map(move |label| match n_batch {
                    1 => label,
                    _ => format!("{row} · {label}"),
                })
            })
            .collect();
        let table = Table::new("stream", rows, axes.positions.labels, cells)?
            .values("probability", best)?
            .color_scale(ColorScale::Sequential { low: 0.0, high: 1.0 })?
            .top_tokens(TopTokens::new("probability", &lists))?;
        Ok(Figure::new(self.lens(), table).with_caption(
            "The likeliest next token if the model ended after each stream, coloured by its probability.",
        ))
    }
}

impl Draw for Ranks {
    fn figure(&self) -> Result<Figure> {
        let rows = self.rows.iter().map(|(row, ..)| row.to_string());
        let cells =
            self.rows.iter().flat_map(|(_, rank, prob)| [rank.to_string(), format!("{:.1} %", 100.0 * prob)]).collect();
        let values = self.rows.iter().flat_map(|(.., prob)| [f32::NAN, *prob as f32]).collect();
        let table = Table::new("stream", rows, ["rank", "probability"], cells)?
            .values("probability", values)?
            .color_scale(ColorScale::Sequential { low: 0.0, high: 1.0 })?;
        Ok(Figure::new("Ranks", table).with_caption("Rank 0 is the likeliest token."))
    }
}

impl Draw for MetricMap {
    /// Of one axis, bars. Of two or more, a map coloured around the metric without a patch; axes before the last two are panels.
    fn figure(&self) -> Result<Figure> {
        let values = floats(&self.tensor())?;
        let baseline = self.baseline().f_double_value(&[])?;
        let caption = format!("The metric with each patch; without a patch it is {}.", number(baseline));
        let scale = ColorScale::around(baseline, values.iter().copied());
        let axis = |axis: &crate::patching::MapAxis| HeatMapAxis::new(axis.name.clone(), axis.labels.clone());
        let title = |axes: &[crate::patching::MapAxis]| {
            let names: Vec<&str> = axes.iter().map(|axis| axis.name.as_str()).collect();
            format!("Metric by {}", names.join(" × "))
        };
        let figure = match self.axes() {
            [] => Figure::new("Metric", BarChart::new("metric", ["all"], values)?),
            [one] => Figure::new(title(self.axes()), BarChart::new("metric", axis(one).labels, values)?),
            [outer @ .., rows, columns] => {
                let mut panels = vec![String::new()];
                for axis in outer {
                    let with = |before: &String, label: &String| {
                        let comma = if before.is_empty() { "" } else { ", " };
                        format!("{before}{comma}{} {label}", axis.name)
                    };
                    panels = panels
                        .iter()
                        .flat_map(|before| axis.labels.iter().map(move |label| (before, label)))
                        .map(|(before, label)| with(before, label))
                        .collect();
                }
                let map = HeatMap::with_panels(HeatMapAxis::new("panel", panels), axis(rows), axis(columns), values)?;
                Figure::new(title(self.axes()), map.color_scale(scale)?.value_name("metric"))
            }
        };
        Ok(figure.with_caption(caption))
    }
}

impl Draw for PromptTest {
    fn figure(&self) -> Result<Figure> {
        let (mut rows, mut cells, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let mut row = |label: String, token: &RankedToken| {
            rows.push(label);
            cells.extend([
                visible(&token.text),
                token.rank.to_string(),
                format!("{:.2}", token.logit),
                format!("{:.2} %", 100.0 * token.probability),
            ]);
            values.extend([f32::NAN, f32::NAN, f32::NAN, token.probability as f32]);
        };
        for (place, position) in self.positions.iter().enumerate() {
            let after = if self.positions.len() > 1 { format!(" of token {place}") } else { String::new() };
            for answer in &position.answers {
                row(format!("answer{after}"), answer);
            }
            for (i, token) in position.top.iter().enumerate() {
                row(format!("top {i}{after}"), token);
            }
        }
        let table = Table::new("", rows, ["token", "rank", "logit", "probability"], cells)?
            .values("probability", values)?
            .color_scale(ColorScale::Sequential { low: 0.0, high: 1.0 })?;
        let prompt: Vec<String> = self.prompt.iter().map(|token| quoted(token)).collect();
        Ok(Figure::new("Answers", table).with_caption(format!("After the prompt {}.", prompt.join(" "))))
    }
}

/// Why a figure has no such form.
pub(super) fn no_form(form: &str, hint: &str) -> Error {
    Error::wrong_input(format!("this kind of figure has no form as {form}: {hint}"))
}
