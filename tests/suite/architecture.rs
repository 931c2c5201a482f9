//! What docs/architecture.md says of the source is true: layers only use layers above them, unsafe code has one place, and tch's
//! calls with a number, which panic where they should fail, have one place.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::common::repository;

/// A file of `src`: its path there, and its code without comments and tests.
struct Source {
    path: String,
    code: String,
}

impl Source {
    /// The folder or file right below `src`.
    fn layer(&self) -> &str {
        let first = self.path.split('/').next().unwrap();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    fn line(&self, offset: usize) -> String {
        format!("src/{}:{}", self.path, 1 + self.code[..offset].matches('\n').count())
    }
}

fn sources() -> Vec<Source> {
    let root = repository().join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    assert!(files.len() > 100, "{}", files.len());
    let read = |path: &PathBuf| std::fs::read_to_string(path).unwrap();
    // Modules of tests alone are files of their own.
    let tests: BTreeSet<PathBuf> = files.iter().flat_map(|path| test_modules(path, &read(path))).collect();
    files.retain(|path| !tests.contains(path));
    let source = |path: PathBuf| {
        let text = read(&path);
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let code: Vec<&str> = text.lines().map(without_comment).collect();
        Source { path: path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/"), code: code.join("\n") }
    };
    files.into_iter().map(source).collect()
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The files of `#[cfg(test)] mod name;`.
fn test_modules(path: &Path, text: &str) -> Vec<PathBuf> {
    let names = text.split("#[cfg(test)]\n").skip(1).filter_map(|rest| {
        let line = rest.lines().next()?.trim().strip_suffix(';')?;
        line.rsplit_once("mod ").map(|(_, name)| name)
    });
    names.map(|name| path.with_file_name(format!("{name}.rs"))).collect()
}

fn without_comment(line: &str) -> &str {
    let trimmed = line.trim_start();
    match line.find("// ") {
        _ if trimmed.starts_with("//") => "",
        Some(start) => &line[..start],
        None => line,
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where `word` stands as a whole word.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word)
        .map(|(start, _)| start)
        .filter(move |start| !code[..*start].ends_with(is_word) && !code[start + word.len()..].starts_with(is_word))
}

/// The first names of what follows `crate::`: one, or those of a group in braces.
fn first_names(path: &str) -> Vec<&str> {
    let Some(group) = path.strip_prefix('{') else {
        return vec![path.split(|c| !is_word(c)).next().unwrap()];
    };
    let (mut depth, mut start, mut names) = (1, 0, Vec::new());
    for (index, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if (c == ',' && depth == 1) || depth == 0 {
            names.push(group[start..index].trim().split(|c| !is_word(c)).next().unwrap());
            start = index + 1;
        }
        if depth == 0 {
            break;
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// The layers of docs/architecture.md, uppermost first: the first words of the lines of its block of layers.
fn layers() -> Vec<String> {
    let text = std::fs::read_to_string(repository().join("docs/architecture.md")).unwrap();
    let block = text.split("```layers\n").nth(1).expect("a block of layers").split("```").next().unwrap();
    let lines = block.lines().filter(|line| !line.starts_with(' ') && !line.is_empty());
    lines.map(|line| line.split_whitespace().next().unwrap().to_string()).collect()
}

/// Where the names at the crate's root come from: `pub use layer::…::Name` of lib.rs.
fn root_names(sources: &[Source]) -> BTreeMap<String, String> {
    let lib = &sources.iter().find(|source| source.path == "lib.rs").unwrap().code;
    let mut names = BTreeMap::new();
    for (start, _) in lib.match_indices("pub use ") {
        let path = lib[start + "pub use ".len()..].split(';').next().unwrap();
        let layer = path.split("::").next().unwrap();
        for name in path.split(|c| !is_word(c)).filter(|name| name.starts_with(char::is_uppercase)) {
            names.insert(name.to_string(), layer.to_string());
        }
        let last = path.rsplit("::").next().unwrap();
        for name in last.split(|c| !is_word(c)).filter(|name| !name.is_empty()) {
            names.insert(name.to_string(), layer.to_string());
        }
    }
    names
}

#[test]
fn a_layer_uses_only_layers_above_it() {
    let (sources, layers) = (sources(), layers());
    let depth: BTreeMap<&str, usize> = layers.iter().map(String::as_str).zip(0..).collect();
    assert_eq!(depth.len(), layers.len(), "a layer stands twice in docs/architecture.md");
    let known: BTreeSet<&str> = sources.iter().map(Source::layer).filter(|layer| *layer != "lib").collect();
    assert_eq!(known, depth.keys().copied().collect(), "the layers of src and those of docs/architecture.md");
    let root = root_names(&sources);
    let (mut uses, mut wrong) = (0, Vec::new());
    for source in sources.iter().filter(|source| source.path != "lib.rs") {
        if !source.path.contains('/') && source.code.contains("super::") {
            wrong.push(format!("src/{} reaches the crate's root by `super`", source.path));
        }
        for start in words(&source.code, "crate").filter(|start| source.code[*start..].starts_with("crate::")) {
            for name in first_names(&source.code[start + "crate::".len()..]) {
                let layer = if depth.contains_key(name) { name } else { root.get(name).map_or("", String::as_str) };
                let place = source.line(start);
                match depth.get(layer) {
                    None => wrong.push(format!("{place}: crate::{name} is in no layer")),
                    Some(above) if *above > depth[source.layer()] => {
                        wrong.push(format!(
                            "{place}: {} uses crate::{name} of {layer}, a layer below it",
                            source.layer()
                        ));
                    }
                    Some(_) => uses += 1,
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    println!("{uses} uses between {} layers", layers.len());
    assert!(uses > 500, "{uses}");
}

#[test]
fn unsafe_code_has_one_place() {
    let mut blocks = 0;
    for source in sources() {
        let count = words(&source.code, "unsafe").count();
        let allowed = source.layer() == "unchecked";
        assert!(allowed || count == 0, "src/{} has unsafe code", source.path);
        blocks += count;
    }
    assert!(blocks > 10, "{blocks}");
}

/// Nothing but a tensor becomes shareable between threads.
#[test]
fn only_tensors_are_made_sync() {
    let impls: Vec<String> = sources()
        .iter()
        .flat_map(|source| source.code.lines().filter(|line| line.trim_start().starts_with("unsafe impl")))
        .map(str::to_string)
        .collect();
    assert_eq!(impls, ["unsafe impl Sync for SharedTensor {}"]);
    fn shareable<T: Send + Sync>() {}
    shareable::<tch_lens::HookedTransformer>();
    shareable::<tch_lens::Transformer>();
}

/// tch's operations that take a number, without `f_`, `_out` and the underscore of those in place; and every other with `scalar`
/// in its name. They are those of tch 0.26 with an argument of `Into<Scalar>`.
const WITH_NUMBER: &[&str] = &[
    "arange",
    "arange_start",
    "arange_start_step",
    "baddbmm",
    "baddbmm_dtype",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "clamp",
    "clamp_max",
    "clamp_min",
    "clip",
    "cudnn_convolution_add_relu",
    "elu_backward",
    "elu_backward_grad_input",
    "eq",
    "fill",
    "fill_diagonal",
    "float_power",
    "fmod",
    "full",
    "full_like",
    "ge",
    "greater",
    "greater_equal",
    "gt",
    "hardshrink_backward",
    "hardtanh_backward",
    "index_fill",
    "internal_and",
    "internal_iand",
    "internal_or",
    "internal_xor",
    "le",
    "leaky_relu_backward",
    "lerp",
    "less",
    "less_equal",
    "linalg_cond",
    "linalg_norm",
    "linspace",
    "logspace",
    "lt",
    "masked_fill",
    "multi_margin_loss_backward",
    "ne",
    "new_full",
    "norm",
    "norm_dtype",
    "not_equal",
    "pow_",
    "range",
    "range_step",
    "remainder",
    "renorm",
    "rrelu_with_noise_backward",
    "scatter_value",
    "scatter_value_reduce",
    "segment_reduce",
    "softplus_backward",
    "softshrink_backward",
    "std_correction",
    "std_mean_correction",
    "threshold",
    "threshold_backward",
    "var_correction",
    "var_mean_correction",
];

/// Of these, what other types have methods of, too: not looked for without `f_`.
const AMBIGUOUS: &[&str] =
    &["clamp", "clip", "eq", "fill", "ge", "gt", "le", "lerp", "lt", "ne", "norm", "range", "remainder", "threshold"];

/// Whether a method takes a number as libtorch's scalar.
fn takes_number(method: &str) -> bool {
    let (name, fallible) = match method.strip_prefix("f_") {
        Some(name) => (name, true),
        None => (method, false),
    };
    let name = name.strip_suffix("_out").unwrap_or(name);
    let in_place = name.strip_suffix('_').unwrap_or(name);
    let listed = WITH_NUMBER.contains(&name) || WITH_NUMBER.contains(&in_place);
    // `Metric::scalar` is no call of libtorch.
    let scalar = name != "scalar" && name.split('_').any(|word| word.starts_with("scalar"));
    (listed || scalar && name != "scalar_tensor") && (fallible || !AMBIGUOUS.contains(&in_place))
}

#[test]
fn numbers_reach_libtorch_in_one_place() {
    for method in
        ["f_mul_scalar", "f_masked_fill_", "f_clamp", "f_eq", "add_scalar", "f_norm_scalaropt_dim", "f_baddbmm"]
    {
        assert!(takes_number(method), "{method}");
    }
    for method in ["f_mul", "f_eq_tensor", "f_clamp_tensor", "clamp", "f_norm_except_dim", "f_pow"] {
        assert!(!takes_number(method), "{method}");
    }
    let (mut calls, mut wrong) = (0, Vec::new());
    for source in sources().iter().filter(|source| source.path != "unchecked/scalar.rs") {
        let code = &source.code;
        for (paren, _) in code.match_indices('(') {
            let start = code[..paren].rfind(|c| !is_word(c)).map_or(0, |before| before + 1);
            let method = &code[start..paren];
            let called = code[..start].ends_with('.') || code[..start].ends_with("Tensor::");
            calls += usize::from(called && method.starts_with("f_"));
            if called && takes_number(method) {
                wrong.push(format!("{}: {method}", source.line(start)));
            }
        }
        // Operators of tensors and numbers: at the result of a fallible call, or at a reference.
        for (operator, _) in code.match_indices(['+', '-', '*', '/']) {
            let (before, after) = (code[..operator].trim_end(), &code[operator + 1..]);
            let spaced = code[..operator].ends_with(char::is_whitespace) && after.starts_with(char::is_whitespace);
            let reference = before.trim_end_matches(|c| is_word(c) || c == '.').ends_with('&');
            let fallible = before.trim_end_matches(')').ends_with('?');
            if spaced && (fallible || reference || after.trim_start().starts_with('&')) {
                wrong.push(format!("{}: an operator of a tensor", source.line(operator)));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    println!("{calls} fallible calls of libtorch");
    assert!(calls > 500, "{calls}");
}
