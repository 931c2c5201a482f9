//! Graphs as SVG.

use std::fmt::Write as _;

use super::super::graph::{Edge, Graph};
use super::super::visible::{cut, number, visible, width};
use super::{n, Anchor, Svg, BLUE, LETTER, MARGIN, RED};

const LAYER: f64 = 64.0;
const NODE: f64 = 20.0;

pub(super) fn graph(graph: &Graph) -> Svg {
    let mut svg = Svg::new();
    let labels: Vec<String> = graph.nodes.iter().map(|node| cut(visible(&node.label).trim_start(), 18)).collect();
    let widths: Vec<f64> = labels.iter().map(|label| width(label) * LETTER + 12.0).collect();
    let (places, layers) = graph.places();
    let widest = widths.iter().copied().fold(0.0, f64::max);
    // The fullest layer decides how wide the graph is.
    let fullest = (0..layers).map(|layer| places.iter().filter(|(_, of)| *of == layer).count()).max().unwrap_or(0);
    let total = (fullest as f64 * (widest + 14.0)).clamp(320.0, 4000.0);
    let center = |node: usize| {
        let (across, layer) = places[node];
        (MARGIN + widest / 2.0 + across * total, MARGIN + NODE / 2.0 + (layers - 1 - layer) as f64 * LAYER)
    };
    let heaviest = graph.edges.iter().map(|edge| edge.weight.abs()).fold(0.0, f32::max).max(f32::MIN_POSITIVE);
    for Edge { from, to, weight } in &graph.edges {
        let ((x1, y1), (x2, y2)) = (center(*from), center(*to));
        let (y1, y2) = if y2 < y1 { (y1 - NODE / 2.0, y2 + NODE / 2.0) } else { (y1, y2) };
        let middle = (y1 + y2) / 2.0;
        let share = f64::from(weight.abs() / heaviest);
        let color = if *weight < 0.0 { RED } else { BLUE };
        let sentence =
            format!("{} → {}: {} {}", labels[*from], labels[*to], number(f64::from(*weight)), graph.value_name);
        svg.open_mark(&format!(r#" data-from="{from}" data-to="{to}""#), &sentence);
        let _ = write!(
            svg.body,
            r#"<path d="M{} {}C{} {} {} {} {} {}" fill="none" stroke="{color}" stroke-width="{}" stroke-opacity="{}"/>"#,
            n(x1),
            n(y1),
            n(x1),
            n(middle),
            n(x2),
            n(middle),
            n(x2),
            n(y2),
            n(0.6 + 4.4 * share),
            n(0.35 + 0.6 * share)
        );
        svg.close();
    }
    for (i, node) in graph.nodes.iter().enumerate() {
        let ((x, y), w) = (center(i), widths[i]);
        let mut sentence = visible(&node.label);
        if !node.detail.is_empty() {
            let _ = write!(sentence, ": {}", visible(&node.detail));
        }
        svg.open_mark(&format!(r#" data-node="{i}""#), &sentence);
        let _ = write!(
            svg.body,
            r##"<rect x="{}" y="{}" width="{}" height="{}" rx="5" fill="#eef2f7" stroke="#7d8a99"/>"##,
            n(x - w / 2.0),
            n(y - NODE / 2.0),
            n(w),
            n(NODE)
        );
        svg.text_in((x, y + 4.0), Anchor::Middle, &labels[i], "#1a1a1a");
        svg.reach(x + w / 2.0, y + NODE / 2.0);
        svg.close();
    }
    svg
}
