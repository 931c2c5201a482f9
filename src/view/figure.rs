//! [`Figure`]: what is drawn, and [`Draw`]: what can be drawn.

use super::html::Page;
use super::{notebook, terminal, AttentionPatterns, BarChart, Graph, HeatMap, LinePlot, Table, TokenStrip};
use crate::Result;

/// What can be drawn.
///
/// ```
/// use tch_lens::view::{BarChart, Draw, Figure};
/// struct Losses(Vec<f32>);
/// impl Draw for Losses {
///     fn figure(&self) -> tch_lens::Result<Figure> {
///         let labels = (0..self.0.len()).map(|i| format!("step {i}"));
///         Ok(Figure::new("Losses", BarChart::new("nats", labels, self.0.clone())?))
///     }
/// }
/// let svg = Losses(vec![3.5, 2.0]).figure()?.to_svg()?;
/// assert!(svg.starts_with("<svg ") && svg.contains("step 1"));
/// # Ok::<(), tch_lens::Error>(())
/// ```
pub trait Draw {
    /// What is drawn.
    ///
    /// # Errors
    ///
    /// Those of libtorch, and of results that cannot be drawn.
    fn figure(&self) -> Result<Figure>;

    /// A page with this alone; its heading is the figure's title.
    ///
    /// # Errors
    ///
    /// Those of [`Draw::figure`].
    fn page(&self) -> Result<Page> {
        let figure = self.figure()?;
        Page::new(figure.title()).figure(figure)
    }

    /// Prints the figure: as an image where the terminal shows images ([`TerminalImages::detect`](super::TerminalImages::detect)) and the
    /// feature `png` is there, else as text.
    ///
    /// # Errors
    ///
    /// Those of [`Draw::figure`]; [`Error::Io`](crate::Error::Io); [`Error::Drawing`](crate::Error::Drawing) for an image without fonts.
    fn show(&self) -> Result<()> {
        terminal::show(&self.figure()?)
    }

    /// Shows the figure in an evcxr notebook: prints it as `text/html` and, for terminals, as `text/plain`, in evcxr's convention. evcxr
    /// calls this method on the value of a cell. A figure that cannot be drawn shows its error.
    fn evcxr_display(&self) {
        notebook::display(self.page());
    }
}

/// What is drawn, with its title and a sentence below it.
#[derive(Clone, Debug)]
pub struct Figure {
    title: String,
    caption: String,
    drawing: Drawing,
}

/// The kinds of figures.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Drawing {
    /// Attention patterns by layer and head.
    Patterns(AttentionPatterns),
    /// Colours in rows and columns.
    HeatMap(HeatMap),
    /// Tokens coloured by values.
    Tokens(TokenStrip),
    /// Texts in rows and columns.
    Table(Table),
    /// A bar for each value.
    Bars(BarChart),
    /// Values along an axis.
    Lines(LinePlot),
    /// Nodes and edges.
    Graph(Graph),
}

impl Figure {
    /// A figure.
    pub fn new(title: impl Into<String>, drawing: impl Into<Drawing>) -> Self {
        Figure { title: title.into(), caption: String::new(), drawing: drawing.into() }
    }

    /// A sentence below the figure: what is seen, and how to read it.
    pub fn with_caption(mut self, caption: impl Into<String>) -> Self {
        self.caption = caption.into();
        self
    }

    /// The title.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The sentence below it; empty where there is none.
    pub fn caption(&self) -> &str {
        &self.caption
    }

    /// What is drawn.
    pub fn drawing(&self) -> &Drawing {
        &self.drawing
    }
}

impl Draw for Figure {
    fn figure(&self) -> Result<Figure> {
        Ok(self.clone())
    }
}

/// Each kind is a [`Drawing`], and can be drawn under its default title.
macro_rules! drawings {
    ($($variant:ident $kind:ty, $title:literal;)*) => {$(
        impl From<$kind> for Drawing {
            fn from(drawing: $kind) -> Self {
                Drawing::$variant(drawing)
            }
        }

        impl Draw for $kind {
            fn figure(&self) -> Result<Figure> {
                Ok(Figure::new($title, self.clone()))
            }
        }
    )*};
}

drawings! {
    Patterns AttentionPatterns, "Attention patterns";
    HeatMap HeatMap, "Map";
    Tokens TokenStrip, "Tokens";
    Table Table, "Table";
    Bars BarChart, "Values";
    Lines LinePlot, "Lines";
    Graph Graph, "Graph";
}
