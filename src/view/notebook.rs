//! What an evcxr notebook shows.

use super::html::Page;
use super::svg::escaped;
use crate::Result;

impl Page {
    /// Shows the page in an evcxr notebook, which calls this on the value of a cell.
    pub fn evcxr_display(&self) {
        println!("{}", content(self));
    }
}

/// Prints a page, or why there is none, in evcxr's convention.
pub(super) fn display(page: Result<Page>) {
    match page {
        Ok(page) => page.evcxr_display(),
        Err(error) => println!("EVCXR_BEGIN_CONTENT text/plain\n{error}\nEVCXR_END_CONTENT"),
    }
}

/// The page in a frame of its own, so that neither its style nor its script touches the notebook; and as text.
fn content(page: &Page) -> String {
    let frame = format!(
        r#"<iframe sandbox="allow-scripts" srcdoc="{}" width="100%" height="{}" style="border:0" title="{}"></iframe>"#,
        escaped(&page.to_html()),
        640.min(160 + 480 * page.figures().len()),
        escaped(page.title())
    );
    let text: Vec<String> = page.figures().iter().map(ToString::to_string).collect();
    format!(
        "EVCXR_BEGIN_CONTENT text/html\n{frame}\nEVCXR_END_CONTENT\nEVCXR_BEGIN_CONTENT text/plain\n{}\nEVCXR_END_CONTENT",
        text.join("\n\n")
    )
}

#[cfg(test)]
mod tests {
    use super::super::{BarChart, Draw};
    use super::*;

    #[test]
    fn a_notebook_gets_html_in_a_frame_and_text() {
        let chart = BarChart::new("logit", ["</iframe><script>"], vec![1.0]).unwrap();
        let content = content(&chart.page().unwrap());
        assert!(content
            .starts_with("EVCXR_BEGIN_CONTENT text/html\n<iframe sandbox=\"allow-scripts\" srcdoc=\"&lt;!doctype"));
        assert!(content.contains("\nEVCXR_BEGIN_CONTENT text/plain\nValues\n"));
        assert!(content.ends_with("\nEVCXR_END_CONTENT"));
        let html = content.split("EVCXR_END_CONTENT").next().unwrap();
        assert_eq!((html.matches("<iframe").count(), html.matches("</iframe>").count()), (1, 1));
        assert!(!html.contains("<script"));
    }
}
