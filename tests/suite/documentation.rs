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
        let ends = ["ForCausalLM", "HeadModel", "Generation", "MTModel"];
        quoted.filter(|name| ends.iter().any(|end| name.ends_with(end))).collect()
    };
    assert_eq!(listed(of_one), HookedTransformer::supported());
    assert_eq!(listed(of_two), HookedEncoderDecoder::supported());
}

/// Made by the example `conformance`, from the fixtures.
#[test]
fn every_architecture_has_a_row_in_the_page_of_conformance() {
    let conformance = page("docs/conformance.md");
    let rows: BTreeSet<&str> = conformance.lines().filter_map(|line| line.split(" | ").nth(1)).collect();
    for architecture in HookedTransformer::supported() {
        assert!(rows.contains(architecture), "{architecture} has no row: run the example `conformance`");
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
