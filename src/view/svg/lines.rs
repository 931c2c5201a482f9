//! Line plots as SVG.

use std::fmt::Write as _;

use super::super::line_plot::LinePlot;
use super::super::visible::{cut, number, short, visible, width};
use super::{n, Anchor, Svg, LETTER, LINES, MARGIN, TEXT};

const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 240.0;

pub(super) fn line_plot(plot: &LinePlot) -> Svg {
    let mut svg = Svg::new();
    let finite = || plot.lines.iter().flat_map(|(_, values)| values).copied().filter(|value| value.is_finite());
    let low = finite().map(f64::from).fold(f64::INFINITY, f64::min).min(0.0);
    let high = finite().map(f64::from).fold(f64::NEG_INFINITY, f64::max);
    let high = if high > low { high } else { low + 1.0 };
    let ticks: Vec<f64> = ticks(low, high);
    let left = MARGIN + 18.0 + ticks.iter().map(|tick| short(*tick).len()).max().unwrap_or(0) as f64 * LETTER + 6.0;
    let top = MARGIN + plot.lines.len() as f64 * 16.0 + 6.0;
    let points = plot.axis.len();
    let x = |i: usize| left + WIDTH * (i as f64 + 0.5) / points.max(1) as f64;
    let y = |value: f64| top + HEIGHT * (high - value) / (high - low);
    for tick in ticks {
        svg.line((left, y(tick)), (left + WIDTH, y(tick)), 0.2);
        svg.text((left - 6.0, y(tick) + 4.0), Anchor::End, &short(tick));
    }
    svg.rising_text((MARGIN + TEXT, top + HEIGHT / 2.0), Anchor::Middle, &plot.value_name);
    let labels: Vec<String> = plot.axis.labels.iter().map(|label| cut(visible(label).trim_start(), 20)).collect();
    let widest = labels.iter().map(|label| width(label)).fold(0.0, f64::max) * LETTER;
    let step = WIDTH / points.max(1) as f64;
    let flat = widest + 6.0 <= step;
    let bottom = top + HEIGHT;
    let every = if flat { 1 } else { ((TEXT + 1.0) / step).ceil().max(1.0) as usize };
    for (i, label) in labels.iter().enumerate().step_by(every) {
        match flat {
            true => svg.text((x(i), bottom + 15.0), Anchor::Middle, label),
            false => svg.rising_text((x(i) + 4.0, bottom + 6.0 + width(label) * LETTER), Anchor::Start, label),
        }
    }
    svg.reach(left + WIDTH, bottom + if flat { 18.0 } else { widest + 8.0 });
    let below = svg.height + TEXT;
    svg.text((left + WIDTH / 2.0, below), Anchor::Middle, &plot.axis.name);
    for (i, (name, values)) in plot.lines.iter().enumerate() {
        let color = LINES[i % LINES.len()];
        let dash = if i >= LINES.len() { r#" stroke-dasharray="5 3""# } else { "" };
        let mut path = String::new();
        let mut pen = 'M';
        for (place, value) in values.iter().enumerate() {
            if !value.is_finite() {
                pen = 'M';
                continue;
            }
            let _ = write!(path, "{pen}{} {}", n(x(place)), n(y(f64::from(*value))));
            pen = 'L';
        }
        let _ = write!(svg.body, r#"<path d="{path}" fill="none" stroke="{color}" stroke-width="1.8"{dash}/>"#);
        for (place, value) in values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
            let value = f64::from(*value);
            let sentence = format!("{}, {}: {}", visible(name), visible(&plot.axis.labels[place]), number(value));
            svg.open_mark("", &sentence);
            let _ = write!(svg.body, r#"<circle cx="{}" cy="{}" r="3.2" fill="{color}"/>"#, n(x(place)), n(y(value)));
            svg.close();
        }
        let row = MARGIN + i as f64 * 16.0;
        let _ = write!(
            svg.body,
            r#"<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{color}" stroke-width="1.8"{dash}/>"#,
            n(left),
            n(row + 7.0),
            n(left + 22.0),
            n(row + 7.0)
        );
        svg.text((left + 28.0, row + 11.0), Anchor::Start, &cut(visible(name).trim_start(), 60));
    }
    svg
}

/// Four to nine round numbers between two.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [5.0, 2.0, 1.0].into_iter().map(|m| m * power).find(|step| *step <= rough).unwrap_or(power);
    let first = (low / step).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last.min(first + 20)).map(|i| i as f64 * step).collect()
}
