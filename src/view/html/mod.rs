//! [`Page`]: results as one file of HTML.

mod data;

use std::fmt::Write as _;
use std::path::Path;

use base64::prelude::{Engine as _, BASE64_STANDARD};
use sha2::{Digest as _, Sha256};

use self::data::Data;
use super::figure::{Draw, Drawing, Figure};
use super::svg::escaped;
use crate::{Error, Result};

/// The script of all pages. It reads the figures' data and draws them as they come into view.
const SCRIPT: &str = concat!(
    include_str!("js/data.js"),
    include_str!("js/interaction.js"),
    include_str!("js/maps.js"),
    include_str!("js/texts.js"),
    include_str!("js/start.js")
);
/// The style of all pages.
const STYLE: &str = include_str!("page.css");

/// Results as one file of HTML, which works without the network: headings, texts and figures in their order.
///
/// ```
/// use tch_lens::view::Page;
/// use tch_lens::{HeadOptions, HookedTransformer};
/// let model = HookedTransformer::toy()?;
/// let (_, cache) = model.run_with_cache("When Mary and John went to the shop, John gave a bag to")?;
/// let heads = cache.logit_attrs(HeadOptions::new().pos(-1), (" Mary", " John"))?;
/// let page = Page::new("Who gets the bag?").text("Mary does.").section("Heads", &heads)?.section("The largest", &heads.top(5)?)?;
/// assert!(page.to_html().len() < 100_000);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Page {
    title: String,
    body: String,
    headings: Vec<String>,
    figures: Vec<Figure>,
    data: Data,
}

impl Page {
    /// A page without contents.
    pub fn new(title: impl Into<String>) -> Self {
        Page { title: title.into(), body: String::new(), headings: Vec::new(), figures: Vec::new(), data: Data::new() }
    }

    /// A heading with a result below it.
    ///
    /// # Errors
    ///
    /// Those of [`Draw::figure`] and of libtorch.
    pub fn section(self, heading: impl Into<String>, result: &(impl Draw + ?Sized)) -> Result<Self> {
        self.heading(heading).figure(result.figure()?)
    }

    /// A heading alone.
    pub fn heading(mut self, heading: impl Into<String>) -> Self {
        let heading = heading.into();
        let number = self.headings.len();
        let _ = writeln!(self.body, r#"<h2 id="section-{number}">{}</h2>"#, escaped(&heading));
        self.headings.push(heading);
        self
    }

    /// A paragraph of plain text.
    pub fn text(mut self, text: impl AsRef<str>) -> Self {
        let _ = writeln!(self.body, "<p>{}</p>", escaped(text.as_ref()));
        self
    }

    /// A figure with its caption.
    ///
    /// # Errors
    ///
    /// Those of libtorch.
    pub fn figure(mut self, figure: Figure) -> Result<Self> {
        let index = self.figures.len();
        // A chart shrinks to a phone's width; a graph, which may be wide, is scrolled.
        let class = if matches!(figure.drawing(), Drawing::Graph(_)) { "svg" } else { "svg fit" };
        let svg = self.data.add(&figure)?.map_or(String::new(), |svg| format!(r#"<div class="{class}">{svg}</div>"#));
        let _ = write!(
            self.body,
            r#"<figure id="figure-{index}" aria-label="{}"><div class="drawing">{svg}</div>"#,
            escaped(figure.title())
        );
        if !figure.caption().is_empty() {
            let _ = write!(self.body, "<figcaption>{}</figcaption>", escaped(figure.caption()));
        }
        self.body.push_str("</figure>\n");
        self.figures.push(figure);
        Ok(self)
    }

    /// The title.
    pub fn title(&self) -> &str {
        &self.title
    }

    pub(super) fn figures(&self) -> &[Figure] {
        &self.figures
    }

    /// The page as text: the same contents give the same text.
    pub fn to_html(&self) -> String {
        let hash = |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)));
        let title = escaped(&self.title);
        let mut html = String::with_capacity(self.data.len() + self.body.len() + STYLE.len() + SCRIPT.len() + 4096);
        let _ = write!(
            html,
            concat!(
                "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
                "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src {style}; script-src {script}; ",
                "img-src data:; base-uri 'none'; form-action 'none'\">\n",
                "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
                "<meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n",
                "<style>{css}</style>\n</head>\n<body>\n<header><h1>{title}</h1>"
            ),
            style = hash(STYLE),
            script = hash(SCRIPT),
            title = title,
            css = STYLE
        );
        if self.headings.len() > 1 {
            html.push_str("<nav aria-label=\"Sections\"><ol>");
            for (number, heading) in self.headings.iter().enumerate() {
                let _ = write!(html, "<li><a href=\"#section-{number}\">{}</a></li>", escaped(heading));
            }
            html.push_str("</ol></nav>");
        }
        html.push_str("</header>\n<main>\n");
        html.push_str(&self.body);
        html.push_str(
            "<noscript><p>The pictures of this page need JavaScript, which is off.</p></noscript>\n</main>\n",
        );
        self.data.write(&mut html);
        let _ = writeln!(html, "<script>{SCRIPT}</script>\n</body>\n</html>");
        html
    }

    /// Writes the page to a file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        std::fs::write(&path, self.to_html()).map_err(Error::io(path.as_ref()))
    }
}
