//! Figures as PNG, drawn from their SVG by resvg with the fonts of the system.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{fontdb, Options, Tree};

use super::figure::Figure;
use crate::{Error, Result};

/// Fonts that are looked for, the first one first: those of the SVG's text.
const FONTS: [&str; 6] = ["DejaVu Sans Mono", "Menlo", "Consolas", "Liberation Mono", "Noto Sans Mono", "Courier New"];
/// The most pixels of an image: 400 MB.
const PIXELS: u64 = 100_000_000;

impl Figure {
    /// The figure as a PNG file, on white. `scale` is how many pixels there are for each unit of the SVG: 2 suits screens, 4 print.
    ///
    /// Text is drawn with fonts of this system; letters that no font has are left out.
    ///
    /// # Errors
    ///
    /// [`Error::Drawing`] where there are no fonts; [`Error::Setting`] for a scale that is not above zero, or that gives an image of
    /// more than 100 million pixels; those of [`to_svg`](Figure::to_svg).
    pub fn to_png(&self, scale: f32) -> Result<Vec<u8>> {
        let drawing = |error: &dyn std::fmt::Display| Error::Drawing { why: error.to_string() };
        let (fonts, family) = fonts();
        let Some(family) = family else {
            return Err(drawing(&"there are no fonts on this system: install one, such as DejaVu, or use `to_svg`"));
        };
        let options = Options { fontdb: fonts.clone(), font_family: family.clone(), ..Options::default() };
        let tree = Tree::from_str(&self.to_svg()?, &options).map_err(|error| drawing(&error))?;
        let [width, height] = [tree.size().width(), tree.size().height()].map(|side| f64::from((side * scale).ceil()));
        let fits = scale > 0.0 && width * height <= PIXELS as f64;
        let pixmap = fits.then(|| Pixmap::new(width as u32, height as u32)).flatten();
        let Some(mut pixmap) = pixmap else {
            let rule = "it must be above zero, and the image of at most 100 million pixels";
            return Err(Error::option_value("scale", scale, rule));
        };
        resvg::render(&tree, Transform::from_scale(scale, scale), &mut pixmap.as_mut());
        pixmap.encode_png().map_err(|error| drawing(&error))
    }

    /// Writes [`to_png`](Figure::to_png) to a file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], and those of [`to_png`](Figure::to_png).
    pub fn save_png(&self, path: impl AsRef<Path>, scale: f32) -> Result<()> {
        std::fs::write(&path, self.to_png(scale)?).map_err(Error::io(path.as_ref()))
    }
}

/// The fonts of the system, read once, and the family that text is in.
fn fonts() -> &'static (Arc<fontdb::Database>, Option<String>) {
    static FOUND: OnceLock<(Arc<fontdb::Database>, Option<String>)> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mut fonts = fontdb::Database::new();
        fonts.load_system_fonts();
        let has = |name: &str| fonts.faces().any(|face| face.families.iter().any(|(family, _)| family == name));
        let known = FONTS.into_iter().find(|name| has(name)).map(str::to_string);
        let any = || fonts.faces().find(|face| face.monospaced).or_else(|| fonts.faces().next());
        let family = known.or_else(|| any().and_then(|face| face.families.first().map(|(family, _)| family.clone())));
        if let Some(family) = &family {
            fonts.set_monospace_family(family);
        }
        (Arc::new(fonts), family)
    })
}
