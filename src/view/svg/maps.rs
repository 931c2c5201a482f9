//! Heat maps and attention patterns as SVG.

use std::fmt::Write as _;

use super::super::color_scale::{is_dark, ColorScale};
use super::super::heat_map::{HeatMap, HeatMapAxis};
use super::super::patterns::AttentionPatterns;
use super::super::visible::{cut, short, visible, width};
use super::{hex, image, n, Anchor, Svg, LETTER, MARGIN, TEXT};
use crate::{Error, Result};

/// The most cells of a panel that are drawn one by one; more are an image.
const CELLS: usize = 4096;
/// The most letters of a label.
const LABEL: usize = 24;
/// The most panels with labels of their own; more are a grid of small ones.
const LABELLED: usize = 4;

/// One panel: what its cells are.
struct Panel<'a> {
    title: String,
    rows: &'a HeatMapAxis,
    columns: &'a HeatMapAxis,
    values: Vec<f32>,
    scale: ColorScale,
    /// Whether a zero is printed: in a pattern it is what a query cannot see.
    zeros: bool,
}

pub(super) fn heat_map(map: &HeatMap) -> Result<Svg> {
    let labels = &map.panels.labels;
    let panel = |panel: usize| Panel {
        title: labels[panel].clone(),
        rows: &map.rows,
        columns: &map.columns,
        values: map.panel(panel).to_vec(),
        scale: map.scale,
        zeros: true,
    };
    let across = (labels.len() as f64).sqrt().ceil() as usize;
    panels(labels.len(), across, |i| Ok(panel(i)), &map.value_name)
}

pub(super) fn patterns(patterns: &AttentionPatterns) -> Result<Svg> {
    let rows = HeatMapAxis::new("query", patterns.queries.iter());
    let columns = HeatMapAxis::new("key", patterns.keys.iter());
    let places: Vec<(usize, usize)> = patterns.panels().collect();
    let panel = |i: usize| -> Result<Panel> {
        let (layer, head) = places[i];
        let values = patterns.values(i)?;
        let scale = match ColorScale::of(values.iter().copied()) {
            ColorScale::Sequential { high, .. } if high <= 1.001 => ColorScale::Sequential { low: 0.0, high: 1.0 },
            other => other,
        };
        Ok(Panel { title: format!("L{layer}H{head}"), rows: &rows, columns: &columns, values, scale, zeros: false })
    };
    let first = places.first().map(|(layer, _)| *layer);
    let across = places.iter().filter(|(layer, _)| Some(*layer) == first).count();
    panels(places.len(), across, panel, "attention")
}

fn panels<'a>(
    count: usize,
    across: usize,
    panel: impl Fn(usize) -> Result<Panel<'a>>,
    value_name: &str,
) -> Result<Svg> {
    let mut svg = Svg::new();
    if count <= LABELLED {
        let mut top = MARGIN;
        for i in 0..count {
            labelled(&mut svg, &panel(i)?, top, value_name)?;
            top = svg.height + 16.0;
        }
        return Ok(svg);
    }
    for i in 0..count {
        let panel = panel(i)?;
        let (rows, columns) = (panel.rows.len().max(1) as f64, panel.columns.len().max(1) as f64);
        let side = 96.0 / rows.max(columns);
        let (w, h) = (side * columns, side * rows);
        let (x, y) = (MARGIN + (i % across) as f64 * (w.max(60.0) + 10.0), MARGIN + (i / across) as f64 * (h + 24.0));
        svg.text((x, y + TEXT), Anchor::Start, &panel.title);
        cells(&mut svg, &panel, (x, y + 16.0), (side, side))?;
        frame(&mut svg, (x, y + 16.0), (w, h));
    }
    let scale = if count > 0 { panel(0)?.scale } else { ColorScale::Sequential { low: 0.0, high: 1.0 } };
    let top = svg.height + 14.0;
    color_bar(&mut svg, scale, value_name, (MARGIN, top));
    Ok(svg)
}

/// A panel with the labels of its rows and columns, and the scale of its colours.
fn labelled(svg: &mut Svg, panel: &Panel, top: f64, value_name: &str) -> Result<()> {
    let shown = |axis: &HeatMapAxis| -> Vec<String> {
        axis.labels.iter().map(|label| cut(visible(label).trim_start(), LABEL)).collect()
    };
    let (rows, columns) = (shown(panel.rows), shown(panel.columns));
    let widest = |labels: &[String]| labels.iter().map(|label| width(label)).fold(0.0, f64::max) * LETTER;
    let n_rows = rows.len().max(1) as f64;
    let n_columns = columns.len().max(1) as f64;
    let is_square = rows.len() == columns.len();
    let numbers = rows.len() * columns.len() <= 400 && n_columns <= 16.0;
    let cell_w = (620.0 / n_columns).clamp(1.0, if numbers { 50.0 } else { 22.0 });
    let cell_h = if is_square { cell_w.min(26.0) } else { (620.0 / n_rows).clamp(1.0, 22.0) };
    let left = MARGIN + 18.0 + widest(&rows) + 6.0;
    let flat = widest(&columns) <= cell_w - 4.0;
    let mut y = top;
    if !panel.title.is_empty() {
        svg.text((left, y + TEXT), Anchor::Start, &panel.title);
        y += 18.0;
    }
    svg.text((left + cell_w * n_columns / 2.0, y + TEXT), Anchor::Middle, &panel.columns.name);
    y += 18.0 + if flat { TEXT + 3.0 } else { widest(&columns) + 4.0 };
    let every = |cell: f64| ((TEXT + 1.0) / cell).ceil().max(1.0) as usize;
    for (i, label) in columns.iter().enumerate().step_by(if flat { 1 } else { every(cell_w) }) {
        let x = left + (i as f64 + 0.5) * cell_w;
        match flat {
            true => svg.text((x, y - 5.0), Anchor::Middle, label),
            false => svg.rising_text((x + 4.0, y - 4.0), Anchor::Start, label),
        }
    }
    for (i, label) in rows.iter().enumerate().step_by(every(cell_h)) {
        svg.text((left - 6.0, y + (i as f64 + 0.5) * cell_h + 4.0), Anchor::End, label);
    }
    let size = (cell_w * n_columns, cell_h * n_rows);
    svg.rising_text((MARGIN + TEXT, y + size.1 / 2.0), Anchor::Middle, &panel.rows.name);
    cells(svg, panel, (left, y), (cell_w, cell_h))?;
    let longest = panel.values.iter().map(|value| format!("{value:.2}").len()).max().unwrap_or(0) as f64;
    if numbers && cell_w >= longest * LETTER + 6.0 && cell_h >= 16.0 {
        for (i, value) in
            panel.values.iter().enumerate().filter(|(_, value)| value.is_finite() && (panel.zeros || **value != 0.0))
        {
            let (row, column) = ((i / columns.len()) as f64, (i % columns.len()) as f64);
            let fill = if is_dark(panel.scale.color(*value)) { "#ffffff" } else { "#1a1a1a" };
            let place = (left + (column + 0.5) * cell_w, y + (row + 0.5) * cell_h + 4.0);
            svg.text_in(place, Anchor::Middle, &format!("{value:.2}"), fill);
        }
    }
    frame(svg, (left, y), size);
    color_bar(svg, panel.scale, value_name, (left, y + size.1 + 14.0));
    Ok(())
}

fn cells(svg: &mut Svg, panel: &Panel, (x, y): (f64, f64), (w, h): (f64, f64)) -> Result<()> {
    let columns = panel.columns.len().max(1);
    if panel.values.len() > CELLS {
        let pixels: Vec<_> = panel.values.iter().map(|value| panel.scale.color(*value)).collect();
        let address = image::data_address(columns, &pixels).map_err(Error::io("an image"))?;
        let (w, h) = (w * columns as f64, h * panel.rows.len() as f64);
        svg.reach(x + w, y + h);
        let _ = write!(
            svg.body,
            r#"<image x="{}" y="{}" width="{}" height="{}" preserveAspectRatio="none" image-rendering="optimizeSpeed" href="{address}"/>"#,
            n(x),
            n(y),
            n(w),
            n(h)
        );
        return Ok(());
    }
    svg.body.push_str(r#"<g shape-rendering="crispEdges">"#);
    for (i, value) in panel.values.iter().enumerate() {
        let place = (x + (i % columns) as f64 * w, y + (i / columns) as f64 * h);
        svg.rect(place, (w, h), &hex(panel.scale.color(*value)));
    }
    svg.close();
    Ok(())
}

fn frame(svg: &mut Svg, (x, y): (f64, f64), (w, h): (f64, f64)) {
    let _ = write!(
        svg.body,
        r#"<rect x="{}" y="{}" width="{}" height="{}" fill="none" stroke="currentColor" stroke-opacity="0.5"/>"#,
        n(x),
        n(y),
        n(w),
        n(h)
    );
}

/// The colours from one end of a scale to the other, with their values.
pub(super) fn color_bar(svg: &mut Svg, scale: ColorScale, name: &str, (x, y): (f64, f64)) {
    const STEPS: usize = 40;
    let (low, high) = scale.ends();
    let [low_text, high_text] = [low, high].map(short);
    svg.text((x, y + 9.0), Anchor::Start, &low_text);
    let start = x + width(&low_text) * LETTER + 6.0;
    svg.body.push_str(r#"<g shape-rendering="crispEdges">"#);
    for step in 0..STEPS {
        let value = low + (high - low) * (step as f64 + 0.5) / STEPS as f64;
        svg.rect((start + 3.0 * step as f64, y), (3.0, 10.0), &hex(scale.color(value as f32)));
    }
    svg.close();
    let end = start + 3.0 * STEPS as f64;
    frame(svg, (start, y), (end - start, 10.0));
    svg.text((end + 6.0, y + 9.0), Anchor::Start, &format!("{high_text}  {name}"));
}
