//! Figures as SVG.
//!
//! This crate writes the SVG itself: what it draws (grids of patterns, token strips, tables, graphs) is laid out here in any case, and
//! a library of charts would give axes only. Text is in the reader's fonts; its place follows from a width of 0.6 em a letter, that of
//! common monospaced fonts.

mod bars;
mod graph;
mod image;
mod lines;
mod maps;
mod table;
mod tokens;

use std::fmt::Write as _;
use std::path::Path;

use super::color_scale::Rgb;
use super::figure::{Drawing, Figure};
use super::visible::{is_unseen, width};
use crate::{Error, Result};

/// The size of text, and how wide a letter of it is.
const TEXT: f64 = 11.0;
const LETTER: f64 = 0.602 * TEXT;
/// The space around a figure.
const MARGIN: f64 = 8.0;
/// The colours of lines and signs: readable on light and dark pages.
const BLUE: &str = "#2f74c0";
const RED: &str = "#c4483a";
const LINES: [&str; 6] = [BLUE, "#d07a12", "#2b9348", RED, "#8250c4", "#5f7480"];

impl Figure {
    /// The figure as an SVG file: black on white, without its title and caption, which a paper has beside it. The same figure gives the
    /// same text.
    ///
    /// # Errors
    ///
    /// Those of libtorch.
    pub fn to_svg(&self) -> Result<String> {
        Ok(self.svg()?.finish(self.title(), false))
    }

    /// Writes [`to_svg`](Figure::to_svg) to a file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], and those of [`to_svg`](Figure::to_svg).
    pub fn save_svg(&self, path: impl AsRef<Path>) -> Result<()> {
        std::fs::write(&path, self.to_svg()?).map_err(Error::io(path.as_ref()))
    }

    /// The figure within a page of HTML: in the page's colour of text, without a background.
    pub(super) fn to_inline_svg(&self) -> Result<String> {
        Ok(self.svg()?.finish(self.title(), true))
    }

    fn svg(&self) -> Result<Svg> {
        match self.drawing() {
            Drawing::Patterns(patterns) => maps::patterns(patterns),
            Drawing::HeatMap(map) => maps::heat_map(map),
            Drawing::Tokens(strip) => Ok(tokens::token_strip(strip)),
            Drawing::Table(table) => Ok(table::table(table)),
            Drawing::Bars(chart) => Ok(bars::bar_chart(chart)),
            Drawing::Lines(plot) => Ok(lines::line_plot(plot)),
            Drawing::Graph(graph) => Ok(graph::graph(graph)),
        }
    }
}

/// Where text stands beside its place.
#[derive(Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

/// A picture that grows with what is drawn.
struct Svg {
    body: String,
    width: f64,
    height: f64,
}

impl Svg {
    fn new() -> Self {
        Svg { body: String::new(), width: 0.0, height: 0.0 }
    }

    fn reach(&mut self, x: f64, y: f64) {
        self.width = self.width.max(x);
        self.height = self.height.max(y);
    }

    fn rect(&mut self, (x, y): (f64, f64), (w, h): (f64, f64), fill: &str) {
        self.reach(x + w, y + h);
        let _ =
            write!(self.body, r#"<rect x="{}" y="{}" width="{}" height="{}" fill="{fill}"/>"#, n(x), n(y), n(w), n(h));
    }

    /// A line of the page's text colour, paler where `opacity` is below one.
    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), opacity: f64) {
        self.reach(x1.max(x2), y1.max(y2));
        let _ = write!(
            self.body,
            r#"<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="currentColor" stroke-opacity="{}"/>"#,
            n(x1),
            n(y1),
            n(x2),
            n(y2),
            n(opacity)
        );
    }

    fn text(&mut self, place: (f64, f64), anchor: Anchor, text: &str) {
        self.text_in(place, anchor, text, "currentColor");
    }

    /// Text on its base line.
    fn text_in(&mut self, (x, y): (f64, f64), anchor: Anchor, text: &str, fill: &str) {
        let len = width(text) * LETTER;
        self.reach(
            match anchor {
                Anchor::Start => x + len,
                Anchor::Middle => x + len / 2.0,
                Anchor::End => x,
            },
            y + 3.0,
        );
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => r#" text-anchor="middle""#,
            Anchor::End => r#" text-anchor="end""#,
        };
        let _ = write!(self.body, r#"<text x="{}" y="{}" fill="{fill}"{anchor}>{}</text>"#, n(x), n(y), escaped(text));
    }

    /// Text that runs upwards from its place.
    fn rising_text(&mut self, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        self.reach(x + 3.0, 0.0);
        let anchor = if let Anchor::Middle = anchor { r#" text-anchor="middle""# } else { "" };
        let _ = write!(
            self.body,
            r#"<text transform="translate({} {}) rotate(-90)" fill="currentColor"{anchor}>{}</text>"#,
            n(x),
            n(y),
            escaped(text)
        );
    }

    /// Opens a group that a page shows a sentence for, under the pointer.
    fn open_mark(&mut self, attributes: &str, sentence: &str) {
        let _ = write!(self.body, r#"<g class="mark"{attributes} data-tip="{}">"#, escaped(sentence));
    }

    fn close(&mut self) {
        self.body.push_str("</g>");
    }

    fn finish(self, title: &str, inline: bool) -> String {
        let (w, h) = (n((self.width + MARGIN).ceil()), n((self.height + MARGIN).ceil()));
        let paper = match inline {
            true => String::new(),
            false => format!(r##"<rect width="{w}" height="{h}" fill="#ffffff"/>"##),
        };
        let color = if inline { "" } else { r##" color="#1a1a1a""## };
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="{TEXT}"{color} role="img"><title>{}</title>{paper}{}</svg>"#,
            escaped(title),
            self.body
        )
    }
}

/// Text and values of attributes, safe in XML and HTML. Characters that cannot be seen become their escapes.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if is_unseen(c) || matches!(c, '\u{fffe}' | '\u{ffff}') => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// A coordinate with at most two digits behind the point.
fn n(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" {
        "0".into()
    } else {
        text.into()
    }
}

fn hex([r, g, b]: Rgb) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}
