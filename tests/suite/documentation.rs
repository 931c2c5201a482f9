//! The pages of documentation agree with the code and with themselves. Their code blocks run as doctests.

use std::collections::BTreeSet;

use crate::common::repository;
use tch_lens::{HookedEncoderDecoder, HookedTransformer};

fn page(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap()
}

#[test]
fn the_readme_lists_the_architectures() {
    let readme: &'static str = page("README.md").leak();
    let section = readme.split("## Architectures").nth(1).unwrap().split("\n## ").next().unwrap();
    let (of_one, of_two) = section.split_once("### Encoder-decoders").unwrap();
    let listed = |section: &'static str| -> Vec<&str> {
        let quoted = section.split('`').skip(1).step_by(2);
        let ends = ["ForCausalLM", "ForMaskedLM", "HeadModel", "Generation", "GenerationDecoder", "MTModel"];
        quoted.filter(|name| ends.iter().any(|end| name.ends_with(end))).collect()
    };
    let supported: Vec<&str> = HookedTransformer::supported().iter().map(|it| it.architecture).collect();
    assert_eq!(listed(of_one), supported);
    assert_eq!(listed(of_two), HookedEncoderDecoder::supported());
}

/// Made by the example `conformance`, from the fixtures.
#[test]
fn every_architecture_has_a_row_in_the_page_of_conformance() {
    let conformance = page("docs/conformance.md");
    let rows: BTreeSet<&str> = conformance.lines().filter_map(|line| line.split(" | ").nth(1)).collect();
    let mut lines = conformance.lines();
    for architecture in HookedTransformer::supported() {
        let name = architecture.architecture;
        assert!(rows.contains(name), "{name} has no row: run the example `conformance`");
        assert!(lines.any(|line| line == architecture.to_string()), "the page's list lacks {architecture}");
    }
    for name in HookedEncoderDecoder::supported() {
        assert!(rows.contains(name), "{name} has no row: run the example `conformance`");
    }
}

#[test]
fn the_contents_of_the_recipes_are_its_headings() {
    let recipes = page("docs/recipes.md");
    let anchor = |heading: &str| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-');
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    let headings: BTreeSet<String> = recipes.lines().filter_map(|line| line.strip_prefix("## ")).map(anchor).collect();
    let linked: Vec<&str> = recipes.split("](#").skip(1).map(|rest| rest.split(')').next().unwrap()).collect();
    assert!(headings.len() > 15, "{headings:?}");
    assert_eq!(linked.iter().map(|link| link.to_string()).collect::<BTreeSet<_>>(), headings);
    assert_eq!(linked.len(), headings.len(), "a recipe is listed twice");
}

/// Each chapter of the book is in its summary, has its pictures, and says what follows and what does not.
#[test]
fn the_book_is_whole() {
    let summary = page("docs/SUMMARY.md");
    let files = |folder: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(repository().join(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains('.')).collect()
    };
    let linked = |text: &str| -> Vec<String> {
        text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap().to_string()).collect()
    };
    let (chapters, mut pictures) = (files("docs/book"), BTreeSet::new());
    let lib = page("src/lib.rs");
    for link in linked(&summary) {
        assert!(repository().join("docs").join(&link).is_file(), "docs/SUMMARY.md names {link}");
    }
    for chapter in &chapters {
        assert!(summary.contains(&format!("(book/{chapter})")), "docs/SUMMARY.md lacks {chapter}");
        let text = page(&format!("docs/book/{chapter}"));
        for link in linked(&text).iter().filter(|link| !link.starts_with("https:")) {
            assert!(repository().join("docs/book").join(link).is_file(), "{chapter} names {link}");
            pictures.extend(link.strip_prefix("pictures/").map(str::to_string));
        }
        if text.contains("```rust") {
            assert!(text.contains("## What to conclude") && text.contains("## What not to conclude"), "{chapter}");
            assert!(lib.contains(&format!("\"{chapter}\"")), "src/lib.rs does not test {chapter}");
        }
    }
    assert!(chapters.len() > 8, "{chapters:?}");
    assert_eq!(pictures, files("docs/book/pictures"), "the pictures of the chapters, and those in the folder");
    assert!(page("README.md").contains("(docs/SUMMARY.md)"), "the README links the book");
}
