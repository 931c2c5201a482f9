//! What the script of a page reads: texts as JSON, numbers as base64.

use base64::prelude::{Engine as _, BASE64_STANDARD};
use serde_json::{json, Value};

use super::super::color_scale::{ColorScale, Ramp, Rgb, DIVERGING, NO_VALUE, SEQUENTIAL};
use super::super::figure::{Drawing, Figure};
use super::super::top_tokens::TopTokens;
use super::super::visible::visible;
use crate::Result;

/// The data of a page's figures.
#[derive(Clone, Debug)]
pub(super) struct Data {
    /// One object a figure.
    figures: Vec<Value>,
    /// The numbers of each figure.
    numbers: Vec<String>,
}

/// The numbers of a figure, as bytes.
#[derive(Default)]
struct Numbers(Vec<u8>);

impl Numbers {
    /// Adds numbers, and says where they lie. Each array begins where base64 begins a group of four letters, and at a whole number.
    fn floats(&mut self, values: &[f32]) -> Value {
        self.add(values.iter().flat_map(|value| value.to_le_bytes()), values.len(), "f32")
    }

    fn words(&mut self, values: &[u32]) -> Value {
        self.add(values.iter().flat_map(|value| value.to_le_bytes()), values.len(), "u32")
    }

    fn add(&mut self, bytes: impl Iterator<Item = u8>, len: usize, kind: &str) -> Value {
        let at = self.0.len();
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(12), 0);
        json!({ "at": at, "n": len, "kind": kind })
    }
}

impl Data {
    pub(super) fn new() -> Self {
        Data { figures: Vec::new(), numbers: Vec::new() }
    }

    /// How many bytes it takes in the page, about.
    pub(super) fn len(&self) -> usize {
        self.numbers.iter().map(|numbers| numbers.len() + 64).sum()
    }

    /// Adds a figure. One without data of its own is SVG, which is returned.
    pub(super) fn add(&mut self, figure: &Figure) -> Result<Option<String>> {
        let mut numbers = Numbers::default();
        let shown = |tokens: &[String]| -> Vec<String> { tokens.iter().map(|token| visible(token)).collect() };
        let mut svg = None;
        let value = match figure.drawing() {
            Drawing::Patterns(patterns) => {
                let encoded = patterns.encoded()?;
                numbers.0 = encoded.bytes;
                json!({
                    "type": "patterns",
                    "queries": shown(&patterns.queries),
                    "keys": shown(&patterns.keys),
                    "panels": patterns.panels().map(|(layer, head)| [layer, head]).collect::<Vec<_>>(),
                    "stride": encoded.stride,
                    "kind": if encoded.is_byte { "root8" } else { "f16" },
                    "causal": encoded.is_causal,
                })
            }
            Drawing::HeatMap(map) => json!({
                "type": "map",
                "panels": shown(&map.panels.labels),
                "rows": { "name": visible(&map.rows.name), "labels": shown(&map.rows.labels) },
                "columns": { "name": visible(&map.columns.name), "labels": shown(&map.columns.labels) },
                "name": visible(&map.value_name),
                "scale": scale(map.scale),
                "values": numbers.floats(&map.values),
            }),
            Drawing::Tokens(strip) => {
                let series: Vec<Value> = (strip.series.iter())
                    .map(|series| {
                        json!({ "name": visible(&series.name), "scale": scale(series.scale), "values": numbers.floats(&series.values) })
                    })
                    .collect();
                json!({
                    "type": "tokens",
                    "tokens": shown(&strip.tokens),
                    "series": series,
                    "top": strip.top.as_ref().map(|top| lists(top, &mut numbers)),
                })
            }
            Drawing::Table(table) => json!({
                "type": "table",
                "corner": visible(&table.corner),
                "rows": shown(&table.rows),
                "columns": shown(&table.columns),
                "cells": shown(&table.cells),
                "name": visible(&table.value_name),
                "scale": scale(table.scale),
                "values": if table.values.is_empty() { Value::Null } else { numbers.floats(&table.values) },
                "top": table.top.as_ref().map(|top| lists(top, &mut numbers)),
            }),
            Drawing::Bars(_) | Drawing::Lines(_) | Drawing::Graph(_) => {
                svg = Some(figure.to_inline_svg()?);
                json!({ "type": "svg" })
            }
        };
        self.figures.push(value);
        self.numbers.push(BASE64_STANDARD.encode(&numbers.0));
        Ok(svg)
    }

    /// Writes the data as elements that no browser runs or shows.
    pub(super) fn write(&self, html: &mut String) {
        for (index, numbers) in self.numbers.iter().enumerate().filter(|(_, numbers)| !numbers.is_empty()) {
            html.push_str(&format!("<script type=\"text/plain\" id=\"numbers-{index}\">"));
            html.push_str(numbers);
            html.push_str("</script>\n");
        }
        let ramp = |Ramp { light, dark }: &Ramp| json!({ "light": light, "dark": dark });
        let none: Rgb = NO_VALUE;
        let all = json!({
            "ramps": { "sequential": ramp(&SEQUENTIAL), "diverging": ramp(&DIVERGING) },
            "none": none,
            "figures": self.figures,
        });
        html.push_str("<script type=\"application/json\" id=\"figures\">");
        html.push_str(&inert(&all.to_string()));
        html.push_str("</script>\n");
    }
}

fn scale(scale: ColorScale) -> Value {
    let (low, high) = scale.ends();
    let ramp = match scale {
        ColorScale::Sequential { .. } => "sequential",
        ColorScale::Diverging { .. } => "diverging",
    };
    json!({ "ramp": ramp, "low": low, "high": high })
}

fn lists(top: &TopTokens, numbers: &mut Numbers) -> Value {
    json!({
        "k": top.k,
        "name": visible(&top.value_name),
        "tokens": top.tokens.iter().map(|token| visible(token)).collect::<Vec<_>>(),
        "ids": numbers.words(&top.ids),
        "values": numbers.floats(&top.values),
    })
}

/// JSON in which no character can end the element that it stands in.
fn inert(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}
