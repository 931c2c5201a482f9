//! Token strips as SVG.

use super::super::color_scale::is_dark;
use super::super::token_strip::TokenStrip;
use super::super::visible::{visible, width};
use super::maps::color_bar;
use super::{hex, Anchor, Svg, LETTER, MARGIN};

/// Where lines break.
const WIDTH: f64 = 700.0;
const LINE: f64 = 22.0;

pub(super) fn token_strip(strip: &TokenStrip) -> Svg {
    let mut svg = Svg::new();
    for series in &strip.series {
        let mut y = if svg.height > 0.0 { svg.height + 20.0 } else { MARGIN };
        let mut x = MARGIN;
        for (token, value) in strip.tokens.iter().zip(&series.values) {
            let text = visible(token);
            let len = width(&text) * LETTER + 4.0;
            if x + len > WIDTH && x > MARGIN {
                (x, y) = (MARGIN, y + LINE);
            }
            let color = series.scale.color(*value);
            let (fill, ink) = match value.is_nan() {
                true => ("none".into(), "currentColor"),
                false => (hex(color), if is_dark(color) { "#ffffff" } else { "#1a1a1a" }),
            };
            svg.rect((x, y), (len, LINE - 3.0), &fill);
            let spaces = text.chars().take_while(|c| *c == ' ').count() as f64;
            svg.text_in((x + 2.0 + spaces * LETTER, y + 13.5), Anchor::Start, text.trim_start(), ink);
            x += len + 1.0;
            if token.contains('\n') {
                (x, y) = (MARGIN, y + LINE);
            }
        }
        let top = svg.height + 12.0;
        color_bar(&mut svg, series.scale, &series.name, (MARGIN, top));
    }
    svg
}
