//! Bar charts as SVG.

use super::super::bar_chart::BarChart;
use super::super::visible::{cut, number, visible, width};
use super::{Anchor, Svg, BLUE, LETTER, MARGIN, RED, TEXT};

const LINE: f64 = 18.0;
const WIDTH: f64 = 220.0;

pub(super) fn bar_chart(chart: &BarChart) -> Svg {
    let mut svg = Svg::new();
    let labels: Vec<String> = chart.labels.iter().map(|label| cut(visible(label).trim_start(), 28)).collect();
    let numbers: Vec<String> = chart.values.iter().map(|value| number(f64::from(*value))).collect();
    let widest = |texts: &[String]| texts.iter().map(|text| width(text)).fold(0.0, f64::max) * LETTER;
    // Label and value come first: on a phone they are seen without scrolling.
    let names = MARGIN + widest(&labels);
    let left = names + 10.0 + widest(&numbers) + 8.0;
    let finite = || chart.values.iter().copied().filter(|value| value.is_finite()).map(f64::from);
    let (low, high) = finite().fold((0.0f64, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
    let unit = if high > low { WIDTH / (high - low) } else { 0.0 };
    let zero = left - low * unit;
    for (i, (label, value)) in labels.iter().zip(&chart.values).enumerate() {
        let y = MARGIN + i as f64 * LINE;
        let value = f64::from(*value);
        svg.open_mark("", &format!("{}: {} {}", label, numbers[i], chart.value_name));
        // Under the pointer, a whole line.
        svg.rect((MARGIN, y), (left - MARGIN + WIDTH, LINE), "none");
        svg.text((names, y + 12.5), Anchor::End, label);
        svg.text((left - 8.0, y + 12.5), Anchor::End, &numbers[i]);
        if value.is_finite() {
            let len = value * unit;
            let (start, color) = if len < 0.0 { (zero + len, RED) } else { (zero, BLUE) };
            svg.rect((start, y + 2.0), (len.abs().max(0.5), LINE - 4.0), color);
        }
        svg.close();
    }
    let bottom = MARGIN + labels.len() as f64 * LINE;
    svg.line((zero, MARGIN), (zero, bottom), 0.6);
    svg.text((left + WIDTH / 2.0, bottom + TEXT + 6.0), Anchor::Middle, &chart.value_name);
    svg
}
