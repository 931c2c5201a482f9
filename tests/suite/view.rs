//! Pictures: what is drawn is what the results say; texts stay texts; the same figure gives the same output.
//!
//! The SVG of each kind is compared with a file in `tests/fixtures/view`. To accept changes that were looked at, run the tests with
//! `TCH_LENS_UPDATE_SVG=1`. The pages that `.ci/browser` opens are written here, to `target/tmp/pages`.

use std::path::PathBuf;

use serde_json::{json, Value};
use tch::{Device, Kind, Tensor};
use tch_lens::view::{
    AttentionPatterns, BarChart, ColorScale, Draw, Figure, Graph, GraphNode, HeatMap, HeatMapAxis, LinePlot, Page,
    Precision, Table, TokenLogProbs, TokenStrip, TopTokens,
};
use tch_lens::Result;

use crate::common::fixtures;

/// What must never reach a page as markup.
const HOSTILE: &str =
    "</script><script>window.hostile=1</script><img src=x onerror=window.hostile=1>\"'&\u{2028}\u{202e}\n";

fn axis(name: &str, prefix: &str, n: usize) -> HeatMapAxis {
    HeatMapAxis::new(name, (0..n).map(|i| format!("{prefix}{i}")))
}

fn words(text: &str, n: usize) -> Vec<String> {
    (0..n).map(|i| format!(" {text}{i}")).collect()
}

/// Causal patterns with rows that sum to one: `[head, query, key]`.
fn causal(heads: i64, n: i64) -> Tensor {
    let numbers = Tensor::arange(heads * n * n, (Kind::Float, Device::Cpu)).reshape([heads, n, n]);
    let scores = (numbers * 0.7).sin() * 3.0;
    let seen = Tensor::ones([n, n], (Kind::Bool, Device::Cpu)).tril(0);
    scores.masked_fill(&seen.logical_not(), f64::NEG_INFINITY).softmax(-1, Kind::Float)
}

/// One figure of each kind, with a text in every place where there can be one.
fn kinds(text: &str) -> Vec<(&'static str, Figure)> {
    let wave = |n: usize| -> Vec<f32> { (0..n).map(|i| ((i as f32) * 0.9).sin() * 2.0).collect() };
    let lists = |n: usize| -> Vec<Vec<(String, f32)>> {
        (0..n).map(|i| (0..i % 3).map(|j| (format!("{text}{}", i + j), 0.5 - 0.1 * j as f32)).collect()).collect()
    };
    let map = HeatMap::new(axis(text, text, 3), axis(text, text, 5), wave(15)).unwrap().value_name(text);
    let panels =
        HeatMap::with_panels(axis(text, text, 6), axis("layer", "", 4), axis("head", "", 4), wave(96)).unwrap();
    let strip = TokenStrip::new(words(text, 8), text, wave(8)).unwrap();
    let strip =
        strip.and(format!("{text} 2"), vec![f32::NAN; 8]).unwrap().top_tokens(TopTokens::new(text, &lists(8))).unwrap();
    let cells = (0..6).map(|i| format!("{text}{i}")).collect();
    let table = Table::new(text, words(text, 3), words(text, 2), cells).unwrap();
    let table = table.values(text, vec![0.1, f32::NAN, 0.5, 0.9, 0.0, 1.0]).unwrap();
    let table = table.top_tokens(TopTokens::new(text, &lists(6))).unwrap();
    let lines = LinePlot::new(text, words(text, 5), text).line(text, wave(5)).unwrap();
    let lines = lines.line("gap", vec![0.0, f32::NAN, 1.0, 0.5, 0.2]).unwrap();
    let mut graph = Graph::new(text);
    for (i, layer) in [0, 1, 1, 2].into_iter().enumerate() {
        graph.node(GraphNode::new(format!("{text}{i}"), layer).detail(text));
    }
    for (from, to, weight) in [(0, 1, 1.0), (0, 2, -0.4), (1, 3, 0.7), (2, 3, 0.1)] {
        graph.edge(from, to, weight).unwrap();
    }
    let named = |drawing: &dyn Draw| {
        let figure = drawing.figure().unwrap();
        Figure::new(format!("{} {text}", figure.title()), figure.drawing().clone()).with_caption(text)
    };
    let patterns =
        AttentionPatterns::new(words(text, 6), words(text, 6), [(0, causal(3, 6)), (1, causal(3, 6))]).unwrap();
    vec![
        ("patterns", named(&patterns)),
        ("one_head", named(&patterns.head(1, 2).unwrap())),
        ("map", named(&map)),
        ("panels", named(&panels)),
        ("tokens", named(&strip)),
        ("table", named(&table)),
        ("bars", named(&BarChart::new(text, words(text, 5), wave(5)).unwrap())),
        ("lines", named(&lines)),
        ("graph", named(&graph)),
    ]
}

fn page_of(title: &str, figures: &[(&str, Figure)]) -> Page {
    let page = Page::new(title).text(title);
    figures.iter().fold(page, |page, (_, figure)| page.section(figure.title(), figure).unwrap())
}

/// The elements between the angle brackets of a document, and what their attributes are.
fn tags(html: &str) -> Vec<&str> {
    html.split('<').skip(1).filter_map(|rest| rest.split('>').next()).collect()
}

#[test]
fn the_svg_of_each_kind_is_as_it_was() {
    let mut different = Vec::new();
    for (name, figure) in kinds("w") {
        let svg = figure.to_svg().unwrap();
        assert_eq!(svg, figure.to_svg().unwrap(), "{name} is drawn differently the second time");
        // One element a line, so that a change can be read.
        let svg = svg.replace("><", ">\n<") + "\n";
        let path = fixtures().join("view").join(format!("{name}.svg"));
        if std::env::var_os("TCH_LENS_UPDATE_SVG").is_some() {
            std::fs::write(&path, &svg).unwrap();
        }
        if std::fs::read_to_string(&path).ok().as_deref() != Some(svg.as_str()) {
            different.push(name);
        }
    }
    assert!(different.is_empty(), "{different:?} differ from tests/fixtures/view; TCH_LENS_UPDATE_SVG=1 accepts them");
}

#[test]
fn texts_stay_texts() {
    let plain = page_of("w", &kinds("w")).to_html();
    let hostile = page_of(HOSTILE, &kinds(HOSTILE)).to_html();
    // The same elements, whatever the texts are.
    let names = |html: &str| -> Vec<String> {
        tags(html).iter().map(|tag| tag.split([' ', '\n']).next().unwrap().to_string()).collect()
    };
    let (plain, found) = (names(&plain), names(&hostile));
    let kinds_of = |names: &[String]| names.iter().cloned().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(kinds_of(&plain), kinds_of(&found));
    for name in ["script", "/script", "img", "figure", "svg"] {
        let count = |names: &[String]| names.iter().filter(|found| *found == name).count();
        assert_eq!(count(&plain), count(&found), "{name}");
    }
    assert!(!hostile.contains("<img") && !hostile.contains("\u{2028}") && !hostile.contains('\u{202e}'));
    for (name, figure) in kinds(HOSTILE) {
        let svg = figure.to_svg().unwrap();
        assert!(!svg.contains("<script") && !svg.contains("<img"), "{name}");
        assert_eq!(svg.matches('<').count(), svg.matches('>').count(), "{name}");
        let text = figure.to_string();
        assert!(!text.contains('\u{202e}'), "{name} turns a terminal's text around");
    }
}

#[test]
fn a_page_asks_for_nothing_from_elsewhere() {
    let html = page_of("w", &kinds("w")).to_html();
    assert_eq!(html, page_of("w", &kinds("w")).to_html());
    let policy = html.split("Content-Security-Policy\" content=\"").nth(1).unwrap().split('"').next().unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    // The only addresses are names of XML, which are not fetched.
    for (at, _) in html.match_indices("http") {
        let rest = &html[at..];
        assert!(rest.starts_with("http-equiv") || rest.starts_with("http://www.w3.org/2000/svg"), "{}", &rest[..40]);
    }
    let empty = Page::new("").to_html().len();
    println!("a page without data: {empty} bytes; with one figure of each kind: {}", html.len());
    assert!(empty < 300_000 && html.len() < 300_000);
}

/// The bytes of a figure's numbers, and its description.
fn data_of(html: &str, index: usize) -> (Vec<u8>, Value) {
    let start = format!("<script type=\"text/plain\" id=\"numbers-{index}\">");
    let text = html.split(&start).nth(1).unwrap().split('<').next().unwrap();
    let json = html.split("id=\"figures\">").nth(1).unwrap().split("</script>").next().unwrap();
    let all: Value = serde_json::from_str(json).unwrap();
    (base64(text), all["figures"][index].clone())
}

fn base64(text: &str) -> Vec<u8> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.bytes().filter(|c| *c != b'=').map(|c| LETTERS.iter().position(|l| *l == c).unwrap() as u32);
    let digits: Vec<u32> = digits.collect();
    digits
        .chunks(4)
        .flat_map(|group| {
            let bits = group.iter().enumerate().fold(0u32, |bits, (i, digit)| bits | digit << (18 - 6 * i));
            bits.to_be_bytes()[1..group.len()].to_vec()
        })
        .collect()
}

/// What a page says of its numbers' exactness is true of every number.
#[test]
fn patterns_in_a_page_are_as_exact_as_it_says() {
    let n = 7;
    for (precision, kind) in [(Precision::Half, "f16"), (Precision::Byte, "root8")] {
        let patterns = AttentionPatterns::new(words("w", n), words("w", n), [(2, causal(3, n as i64))]).unwrap();
        let html = patterns.clone().precision(precision).page().unwrap().to_html();
        let (bytes, figure) = data_of(&html, 0);
        assert_eq!((&figure["kind"], &figure["causal"]), (&json!(kind), &json!(true)));
        assert_eq!(figure["panels"], json!([[2, 0], [2, 1], [2, 2]]));
        let stride = figure["stride"].as_u64().unwrap() as usize;
        let exact = Vec::<f32>::try_from(causal(3, n as i64).reshape(-1)).unwrap();
        let (mut largest, mut smallest_share) = (0.0f64, f64::INFINITY);
        for head in 0..3 {
            let mut next = 0;
            for query in 0..n {
                for key in 0..=query {
                    let want = f64::from(exact[(head * n + query) * n + key]);
                    let (got, claimed) = match precision {
                        Precision::Byte => {
                            let value = (f64::from(bytes[head * stride + next]) / 255.0).powi(2);
                            (value, (value.sqrt() + 1.0 / 1020.0) / 255.0)
                        }
                        _ => {
                            let at = head * stride + 2 * next;
                            let half = u16::from_le_bytes([bytes[at], bytes[at + 1]]);
                            let value = half_to_number(half);
                            (value, (value.abs() * 2f64.powi(-11)).max(2f64.powi(-25)))
                        }
                    };
                    next += 1;
                    let off = (got - want).abs();
                    largest = largest.max(off);
                    smallest_share = smallest_share.min(claimed - off);
                }
            }
        }
        println!("{kind}: off by up to {largest:.2e}");
        assert!(smallest_share >= -1e-7, "{kind}: a number is further off than the page says, by {smallest_share:e}");
        assert!(largest > 0.0);
    }
}

fn half_to_number(half: u16) -> f64 {
    let (exponent, part) = ((half >> 10 & 31) as i32, f64::from(half & 1023));
    match exponent {
        0 => part * 2f64.powi(-24),
        exponent => (1.0 + part / 1024.0) * 2f64.powi(exponent - 15),
    }
}

/// 12 layers of 12 heads at 512 positions: half of the numbers, a byte each, four thirds of that as base64.
#[test]
fn many_patterns_are_compact() {
    let patterns = causal(12, 512);
    let layers = (0..12).map(|layer| (layer, patterns.shallow_clone()));
    let patterns = AttentionPatterns::new(words("w", 512), words("w", 512), layers).unwrap();
    let html = patterns.page().unwrap().to_html();
    println!("12 × 12 × 512²: {} bytes", html.len());
    assert!(html.len() < 25_500_000, "{}", html.len());
    write_page("large", &html);
}

fn write_page(name: &str, html: &str) {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("pages");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(format!("{name}.html")), html).unwrap();
}

#[test]
fn the_pages_for_the_browser_are_written() {
    write_page("kinds", &page_of("Every kind", &kinds("w")).to_html());
    write_page("hostile", &page_of(HOSTILE, &kinds(HOSTILE)).to_html());
    #[cfg(feature = "toy")]
    write_page("results", &page_of("Results of the toy model", &toy::results()).to_html());
}

#[test]
fn what_does_not_fit_is_an_error() {
    let errors: Vec<(Result<()>, &str)> = vec![
        (
            HeatMap::new(axis("a", "", 2), axis("b", "", 2), vec![0.0; 3]).map(drop),
            "the values of a heat map has shape [3]",
        ),
        (TokenStrip::new(["a"], "x", vec![]).map(drop), "the values of a token strip"),
        (Table::new("", ["a"], ["b"], vec![]).map(drop), "the cells of a table"),
        (BarChart::new("x", ["a"], vec![]).map(drop), "the values of a bar chart"),
        (LinePlot::new("x", ["a"], "y").line("l", vec![]).map(drop), "the values of a line"),
        (Graph::new("w").edge(0, 1, 1.0), "index 0 is out of range"),
        (AttentionPatterns::new(["a"], ["a"], [(3, causal(1, 2))]).map(drop), "the patterns of layer 3"),
        (
            AttentionPatterns::new(["a"], ["a"], [(0, Tensor::from_slice(&[2.0f32]).view([1, 1, 1]))])
                .and_then(|patterns| patterns.precision(Precision::Byte).page())
                .map(drop),
            "`precision` is Byte: numbers outside 0 to 1",
        ),
        (
            BarChart::new("x", ["a"], vec![1.0]).and_then(|chart| chart.figure()?.to_circuitsvis()).map(drop),
            "this kind of figure has no form as a component of circuitsvis",
        ),
        (
            HeatMap::new(axis("a", "", 1), axis("b", "", 1), vec![0.0])
                .and_then(|map| map.color_scale(ColorScale::Diverging { center: 0.0, reach: 0.0 }))
                .map(drop),
            "`color_scale` is Diverging",
        ),
    ];
    for (result, sentence) in errors {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(sentence), "{error}\nwithout: {sentence}");
    }
}

/// Lists may differ in length.
#[test]
fn short_lists_end_early() {
    let list = |tokens: &[&str]| tokens.iter().map(|token| (token.to_string(), 0.5)).collect::<Vec<_>>();
    let top = TopTokens::new("p", &[list(&["a", "b"]), list(&[]), list(&["b"])]);
    let of = |i: usize| top.list(i).map(|(token, _)| token.to_string()).collect::<Vec<_>>();
    assert_eq!((top.len(), of(0), of(1), of(2)), (3, vec!["a".into(), "b".into()], vec![], vec!["b".to_string()]));
}

#[test]
fn empty_figures_are_drawn() {
    let none: [&str; 0] = [];
    let empty = [
        Figure::new("", HeatMap::new(axis("a", "", 0), axis("b", "", 3), vec![]).unwrap()),
        Figure::new("", TokenStrip::new(none, "x", vec![]).unwrap()),
        Figure::new("", Table::new("", none, none, vec![]).unwrap()),
        Figure::new("", BarChart::new("x", none, vec![]).unwrap()),
        Figure::new("", LinePlot::new("x", none, "y")),
        Figure::new("", Graph::new("w")),
        Figure::new("", BarChart::new("x", ["a"], vec![f32::NAN]).unwrap()),
        Figure::new("", HeatMap::new(axis("a", "", 1), axis("b", "", 1), vec![f32::INFINITY]).unwrap()),
        Figure::new("", AttentionPatterns::new(none, none, []).unwrap()),
    ];
    for figure in &empty {
        assert!(figure.to_svg().unwrap().ends_with("</svg>"));
        assert!(figure.page().unwrap().to_html().ends_with("</html>\n"));
        let _ = figure.to_string();
    }
}

#[test]
fn circuitsvis_gets_its_properties() {
    let patterns = AttentionPatterns::new(["a", " b"], ["a", " b"], [(1, causal(2, 2))]).unwrap();
    let heads = patterns.figure().unwrap().to_circuitsvis().unwrap();
    assert_eq!(heads["component"], "AttentionHeads");
    assert_eq!(heads["props"]["attentionHeadNames"], json!(["L1H0", "L1H1"]));
    assert_eq!(heads["props"]["attention"][1][0], json!([1.0, 0.0]));
    let strip = TokenStrip::new(["a", " b"], "x", vec![-1.0, 2.0]).unwrap().and("y", vec![0.0, 1.0]).unwrap();
    let multi = strip.figure().unwrap().to_circuitsvis().unwrap();
    assert_eq!(multi["component"], "ColoredTokensMulti");
    assert_eq!(
        multi["props"],
        json!({ "tokens": ["a", " b"], "values": [[-1.0, 0.0], [2.0, 1.0]], "labels": ["x", "y"] })
    );
}

#[cfg(feature = "png")]
#[test]
fn png_is_drawn_at_its_scale() {
    for (name, figure) in kinds("w") {
        let svg = figure.to_svg().unwrap();
        let width: f32 = svg.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
        let png = figure.to_png(2.0).unwrap();
        assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"), "{name}");
        assert_eq!(u32::from_be_bytes(png[16..20].try_into().unwrap()), 2 * width as u32, "{name}");
        assert_eq!(png, figure.to_png(2.0).unwrap(), "{name}");
        if let Some(folder) = std::env::var_os("TCH_LENS_PNG") {
            std::fs::write(PathBuf::from(folder).join(format!("{name}.png")), &png).unwrap();
        }
    }
    let error = kinds("w")[2].1.to_png(0.0).unwrap_err().to_string();
    assert!(error.starts_with("`scale` is 0: it must be above zero"), "{error}");
}

/// Figures of the toy model's results hold the results' numbers.
#[cfg(feature = "toy")]
mod toy {
    use super::*;
    use tch_lens::circuits::{Ablation, CircuitTask, CurveOptions, EdgeMethod};
    use tch_lens::gradient::{AttributionPatchingOptions, IntegratedGradientsOptions};
    use tch_lens::graphs::{AttributionGraphOptions, PruneOptions};
    use tch_lens::lens::{JacobianLens, JacobianLensOptions, Patchscope, TunedLens};
    use tch_lens::probe::{ProbeOptions, ProbeSweep};
    use tch_lens::sae::{DictionarySet, SaeOptions};
    use tch_lens::view::{FeatureExamples, ScoredCircuit};
    use tch_lens::{
        hook, patching, AnswerPosition, FullOptions, GenerateOptions, HeadOptions, HookedTransformer, LensOptions,
        Metric, RunOptions, StepOptions,
    };

    const CLEAN: &str = "When Mary and John went to the shop, John gave a bag to";
    const CORRUPTED: &str = "When Mary and John went to the shop, Mary gave a bag to";

    pub fn results() -> Vec<(&'static str, Figure)> {
        let model = HookedTransformer::toy().unwrap();
        let (logits, cache) = model.run_with_cache(CLEAN).unwrap();
        let tokens = model.to_tokens(CLEAN).unwrap();
        let lens = cache.logit_lens(LensOptions::new()).unwrap();
        let attrs = cache.logit_attrs(FullOptions::new(), " Mary").unwrap().by_layer().unwrap();
        let metric = Metric::logit_diff(" Mary", " John");
        let map = patching::get_act_patch_resid_pre(&model, CORRUPTED, &cache, &metric).unwrap();
        let figures: Vec<(&str, Result<Figure>)> = vec![
            ("patterns", AttentionPatterns::of(&cache, 0).unwrap().figure()),
            ("lens", lens.figure()),
            ("ranks", lens.pos(-1).unwrap().rank_of(" Mary").unwrap().figure()),
            ("attribution", attrs.figure()),
            ("last", attrs.pos(-1).unwrap().figure()),
            ("map", map.figure()),
            ("log_probs", TokenLogProbs::new(&model, &tokens, 0, &logits, 5).unwrap().figure()),
            ("prompt", model.test_prompt(CLEAN, ["Mary"]).unwrap().figure()),
        ];
        let figures = figures.into_iter().map(|(name, figure)| (name, figure.unwrap()));
        figures.chain(studies(&model)).collect()
    }

    /// Results of lenses, generations, gradients, circuits and probes.
    fn studies(model: &HookedTransformer) -> Vec<(&'static str, Figure)> {
        let metric = Metric::logit_diff(" Mary", " John");
        let (_, cache) = model.run_with_cache(CLEAN).unwrap();
        let options = JacobianLensOptions::new().skip_first(1).rows_at_once(128);
        let jacobian = JacobianLens::fit(model, [CORRUPTED], options).unwrap();
        let scope = Patchscope::new(model, "When Peter and Anna went to the park, Peter gave a ball to").unwrap();
        let options = GenerateOptions::new().do_sample(false).max_new_tokens(4);
        let generated = |steps| model.generate_with([CLEAN, CORRUPTED], &options, steps).unwrap().figure();
        let task = CircuitTask::new(model, CLEAN, Ablation::counterfactual(CORRUPTED), &metric).unwrap();
        let scores = task.edge_scores(EdgeMethod::Gradient).unwrap();
        let circuit = scores.top_n(40).unwrap().pruned();
        let curve = task.faithfulness_curve(&scores, CurveOptions::new().fractions([0.05, 0.2, 1.0])).unwrap();
        let points = AttributionPatchingOptions::new().points(["resid_pre", "z"]);
        let estimates = model.attribution_patching(CORRUPTED, CLEAN, &metric, points).unwrap();
        let options = IntegratedGradientsOptions::new().steps(4);
        let baseline = Tensor::zeros([1, 1, 128], (Kind::Float, Device::Cpu));
        let shares = model.integrated_gradients(CLEAN, "hook_embed", &baseline, &metric, options).unwrap();
        let rows =
            model.run([CLEAN, CORRUPTED, CLEAN, CORRUPTED], RunOptions::new().cache("resid_post")).unwrap().cache;
        let label = |example: tch_lens::probe::ProbeExample| Some(example.row % 2);
        let probes = ProbeSweep::fit(&rows, "resid_post", label, &ProbeOptions::new().l2(0.1).seed(2)).unwrap();
        let maps = (0..4).map(|_| (Tensor::eye(128, (Kind::Float, Device::Cpu)) * 0.1, None));
        let tuned = TunedLens::new(model, maps).unwrap();
        let transcoders = DictionarySet::toy().unwrap();
        let options = AttributionGraphOptions::new().logits([" Mary"]).transcoders(transcoders.clone());
        let graph = model.attribution_graph(CLEAN, options).unwrap();
        let spliced = model.with_saes(transcoders.dictionaries().to_vec(), SaeOptions::new()).unwrap();
        let point = hook::sae_acts_post(hook::mlp_out(3));
        let feature =
            FeatureExamples::of(&spliced, point, 256, [CLEAN, CORRUPTED, "The capital of France is Paris"], 3).unwrap();
        write_page("feature", &feature.page().unwrap().to_html());
        let figures: Vec<(&str, Result<Figure>)> = vec![
            ("jacobian_lens", jacobian.read(&cache, LensOptions::new()).unwrap().figure()),
            ("patchscope", scope.read(&cache, LensOptions::new().pos(10..)).unwrap().figure()),
            ("generation", generated(StepOptions::new().logits(true))),
            ("entropies", generated(StepOptions::new().entropies(true))),
            ("circuit", circuit.figure()),
            ("scored_circuit", ScoredCircuit { circuit: &circuit, scores: &scores }.figure()),
            ("faithfulness", curve.figure()),
            ("estimates", estimates.map("resid_pre")),
            ("estimates_by_head", estimates.map("z")),
            ("integrated", shares.figure()),
            ("probe", probes.rows[0].1.figure()),
            ("probes", probes.figure()),
            (
                "ranking",
                cache
                    .logit_attrs(HeadOptions::new().pos(-1), " Mary")
                    .unwrap()
                    .batch(0)
                    .unwrap()
                    .top(5)
                    .unwrap()
                    .figure(),
            ),
            ("tuned_lens", tuned.read(&cache, LensOptions::new()).unwrap().figure()),
            ("attribution_graph", graph.prune(PruneOptions::new().nodes(0.6).edges(0.9)).unwrap().figure()),
            ("feature", feature.figure()),
        ];
        figures.into_iter().map(|(name, figure)| (name, figure.unwrap())).collect()
    }

    /// Each result as SVG, as text, as a page and in a notebook.
    #[test]
    fn every_result_has_every_form() {
        for (name, figure) in results() {
            let svg = figure.to_svg().unwrap();
            assert!(svg.starts_with("<svg ") && svg.len() > 300, "{name}");
            let text = figure.to_string();
            assert!(text.lines().count() > 2, "{name}: {text}");
            // The caption is a paragraph; all else fits a terminal.
            let fits = |line: &str| line.chars().count() <= 100 || line == figure.caption();
            assert!(text.lines().all(fits), "{name}: {text}");
            let html = figure.page().unwrap().to_html();
            assert!(html.len() < 300_000, "{name}: {} bytes", html.len());
            #[cfg(feature = "png")]
            assert!(figure.to_png(1.0).unwrap().starts_with(b"\x89PNG"), "{name}");
        }
    }

    /// Examples of a feature: the strongest texts in their order, what it writes, and how often it is active.
    #[test]
    fn examples_of_features_hold_their_activations() {
        let transcoders = DictionarySet::toy().unwrap();
        let model = HookedTransformer::toy().unwrap();
        let spliced = model.with_saes(transcoders.dictionaries().to_vec(), SaeOptions::new()).unwrap();
        let texts = [
            CLEAN,
            "The capital of France is Paris",
            CORRUPTED,
            "When Peter and Anna went to the park, Anna gave a ball to",
        ];
        let point = hook::sae_acts_post(hook::mlp_out(-1));
        let found = FeatureExamples::of(&spliced, point, 256, texts, 2).unwrap();
        let mut counts = (0, 0);
        let mut largest = Vec::new();
        for text in texts {
            let (_, cache) = spliced.run_with_cache_of(text, point).unwrap();
            let acts = floats(&cache.get(point).unwrap().select(0, 0).select(1, 256));
            counts = (counts.0 + acts[1..].iter().filter(|act| **act != 0.0).count(), counts.1 + acts.len() - 1);
            largest.push(acts[1..].iter().copied().fold(0.0, f32::max));
        }
        largest.sort_by(|a, b| b.total_cmp(a));
        let strongest: Vec<f32> = found.strongest().iter().map(|example| example.activation()).collect();
        assert!(strongest == largest[..2] && strongest[1] > 0.0, "{strongest:?} of {largest:?}");
        assert!((found.density() - counts.0 as f64 / counts.1 as f64).abs() < 1e-12);
        for example in found.strongest() {
            assert_eq!((example.position(), example.tokens()[0].as_str()), (10, "<|endoftext|>"));
            assert!(example.activations()[0].is_nan() && [" John", " Mary", " Anna"].contains(&example.token()));
        }
        // What it writes: its decoder's row through the unembedding.
        let row = transcoders.dictionaries()[3].decoder_rows(0, &Tensor::from_slice(&[256i64])).unwrap();
        let logits = row.matmul(&model.w_u().unwrap()).squeeze();
        let logits = &logits - logits.mean(Kind::Float);
        let id = model.to_single_token(&found.raised()[0].0).unwrap();
        assert_eq!(id, logits.argmax(0, false).int64_value(&[]));
        assert!((f64::from(found.raised()[0].1) - logits.max().double_value(&[])).abs() < 1e-5);
        assert!((f64::from(found.lowered()[0].1) - logits.min().double_value(&[])).abs() < 1e-5);
        let page = found.page().unwrap().to_html();
        for what in ["<nav ", "L3F256", "Logits that it raises", "How strong it is", "The texts"] {
            assert!(page.contains(what), "{what}");
        }
        assert_eq!(data_of(&page, 0).1["columns"][6], "strongest");
        // A neuron writes its row of W_out; a feature that is never active has no examples, and is drawn all the same.
        let neuron = FeatureExamples::of(&model, hook::post(3), 7, [CLEAN], 1).unwrap();
        let written = model.w_out(3).unwrap().get(7).unsqueeze(0).matmul(&model.w_u().unwrap());
        let written = (&written - written.mean(Kind::Float)).max().double_value(&[]);
        assert!((f64::from(neuron.raised()[0].1) - written).abs() < 1e-5);
        let mut none = FeatureExamples::new("never", 3).unwrap();
        none.add(["a", "b"], [0.0, f32::NAN]).unwrap();
        assert_eq!((none.strongest().len(), none.density()), (0, 0.0));
        assert!(none.page().unwrap().to_html().contains("never") && none.figure().unwrap().to_svg().is_ok());
        // The strongest stay, the first of equal ones first.
        let mut kept = FeatureExamples::new("kept", 3).unwrap();
        let five = [("x", [1.0, 3.0]), ("y", [3.0, 3.0]), ("z", [0.5, -4.0]), ("w", [4.0, -9.0]), ("v", [9.0, 9.0])];
        for (text, values) in five {
            kept.add([text, text], values).unwrap();
        }
        let order: Vec<(&str, usize)> = kept.strongest().iter().map(|e| (e.token(), e.position())).collect();
        assert_eq!(order, [("v", 0), ("w", 0), ("x", 1)]);
        let error = |result: Result<FeatureExamples>, what: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        error(FeatureExamples::new("x", 0), "`keep` is 0");
        error(FeatureExamples::of(&spliced, point, 512, [CLEAN], 1), "index 512 is out of range");
        error(FeatureExamples::of(&model, "blocks.0.hook_resid_post", 1, [CLEAN], 1), "neither neurons nor features");
        error(FeatureExamples::of(&model, point, 1, [CLEAN], 1), "hook_sae_acts_post");
        assert!(kept.add(["a"], [1.0, 2.0]).unwrap_err().to_string().contains("the activations of a text"));
        assert!(kept.write(&model, &Tensor::from_slice(&[1.0f32])).unwrap_err().to_string().contains("[128]"));
    }

    #[test]
    fn studies_are_drawn_with_their_numbers() {
        let model = HookedTransformer::toy().unwrap();
        let metric = Metric::logit_diff(" Mary", " John");
        // A generation: the probability of each token, before sampling options.
        let options = GenerateOptions::new().do_sample(false).max_new_tokens(3);
        let generated = model.generate_with(CLEAN, &options, StepOptions::new().logits(true)).unwrap();
        let probs = generated.logits.as_ref().unwrap()[0].softmax(-1, Kind::Float).amax([-1i64].as_slice(), false);
        let html = generated.page().unwrap().to_html();
        assert_eq!(numbers(&html, 0, "values"), floats(&probs));
        let (_, figure) = data_of(&html, 0);
        assert_eq!((&figure["cells"][0], &figure["rows"]), (&json!(" Mary"), &json!(["0", "1", "2"])));
        // Of a token that was drawn it is its own, not the likeliest one's.
        let options = GenerateOptions::new().temperature(5.0).seed(4).stop_at_eos(false).max_new_tokens(4);
        let drawn = model.generate_with(CLEAN, &options, StepOptions::new().logits(true)).unwrap();
        let ids = Tensor::from_slice(drawn.rows[0].new_ids()).unsqueeze(1);
        let probs = drawn.logits.as_ref().unwrap()[0].softmax(-1, Kind::Float);
        let of_drawn = floats(&probs.gather(1, &ids, false));
        assert_eq!(numbers(&drawn.page().unwrap().to_html(), 0, "values"), of_drawn);
        assert_ne!(of_drawn, floats(&probs.amax([-1i64].as_slice(), false)));
        // A circuit: its nodes from the bottom to the top, and the sum of the scores of the edges between two.
        let task = CircuitTask::new(&model, CLEAN, Ablation::counterfactual(CORRUPTED), &metric).unwrap();
        let scores = task.edge_scores(EdgeMethod::Gradient).unwrap();
        let edges = ["input->a0.h3<v>", "input->a0.h3<k>", "a0.h3->logits"].map(|edge| edge.parse().unwrap());
        let circuit = tch_lens::circuits::Circuit::of_edges(model.config(), edges).unwrap();
        let text = ScoredCircuit { circuit: &circuit, scores: &scores }.figure().unwrap().to_string();
        let sum = scores.get(edges[0]).unwrap() + scores.get(edges[1]).unwrap();
        assert!(text.contains(&format!("{sum:.3}").trim_end_matches('0').to_string()), "{sum}: {text}");
        assert!(circuit.figure().unwrap().to_string().contains("a0.h3"));
        // Estimates: [layer, pos], and [layer, pos, head] as a panel for each layer.
        let points = AttributionPatchingOptions::new().points(["resid_pre", "z", "post"]);
        let estimates = model.attribution_patching(CORRUPTED, CLEAN, &metric, points).unwrap();
        let html = estimates.map("z").unwrap().page().unwrap().to_html();
        assert_eq!(numbers(&html, 0, "values"), floats(&estimates.by_layer("z").unwrap().transpose(1, 2)));
        assert_eq!(data_of(&html, 0).1["columns"]["labels"][2], " Mary");
        assert!(estimates.map("post").unwrap_err().to_string().contains("too many neurons"));
        // Shares of tokens.
        let baseline = Tensor::zeros([1, 1, 128], (Kind::Float, Device::Cpu));
        let options = IntegratedGradientsOptions::new().steps(2);
        let shares = model.integrated_gradients(CLEAN, "hook_embed", &baseline, &metric, options).unwrap();
        let props = shares.figure().unwrap().to_circuitsvis().unwrap();
        let values: Vec<f32> = serde_json::from_value(props["props"]["values"].clone()).unwrap();
        assert_eq!(values, floats(&shares.by_position().unwrap()));
        assert_eq!(props["props"]["tokens"][2], " Mary");
    }

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.to_kind(Kind::Float).reshape(-1)).unwrap()
    }

    fn numbers(html: &str, index: usize, key: &str) -> Vec<f32> {
        let (bytes, figure) = data_of(html, index);
        let [at, n] = ["at", "n"].map(|name| figure[key][name].as_u64().unwrap() as usize);
        bytes[at..at + 4 * n].chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
    }

    #[test]
    fn attributions_are_drawn_by_head_and_by_position() {
        let model = HookedTransformer::toy().unwrap();
        let (_, cache) = model.run_with_cache([CLEAN, CORRUPTED]).unwrap();
        let all = cache.logit_attrs(HeadOptions::new(), " Mary").unwrap(); // [16, 2, 15]
        let html = all.page().unwrap().to_html();
        assert_eq!(numbers(&html, 0, "values"), floats(&all.tensor().permute([1, 0, 2])));
        let (_, figure) = data_of(&html, 0);
        assert_eq!(figure["panels"], json!(["row 0", "row 1"]));
        assert_eq!(figure["columns"]["labels"][11], "position 11", "the tokens of the two rows differ");
        let one = all.batch(0).unwrap().pos(-1).unwrap();
        let html = one.page().unwrap().to_html();
        assert_eq!(numbers(&html, 0, "values"), floats(&one.by_head().unwrap()));
        // Some heads only: bars, the largest first.
        let some = one.select(|row| row.layer() == Some(3)).unwrap();
        let (rows, text) = (some.top(4).unwrap(), some.figure().unwrap().to_string());
        let places: Vec<usize> = rows.rows.iter().map(|(row, _)| text.find(&row.to_string()).unwrap()).collect();
        assert!(places.is_sorted(), "{text}");
        // Means have no tokens.
        let mean = all.mean_batch().unwrap().mean_pos().unwrap();
        assert_eq!(numbers(&mean.page().unwrap().to_html(), 0, "values"), floats(&mean.by_head().unwrap()));
    }

    #[test]
    fn a_lens_is_drawn_with_the_likeliest_tokens() {
        let model = HookedTransformer::toy().unwrap();
        let (_, cache) = model.run_with_cache([CLEAN, CORRUPTED]).unwrap();
        let lens = cache.logit_lens(LensOptions::new()).unwrap(); // [5, 2, 15, d_vocab_out]
        let html = lens.page().unwrap().to_html();
        let best = lens.log_probs().unwrap().exp().amax([-1i64].as_slice(), false).permute([1, 0, 2]);
        let off = numbers(&html, 0, "values").iter().zip(floats(&best)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-6, "{off}");
        let (_, figure) = data_of(&html, 0);
        assert_eq!(figure["rows"][9], "row 1 · final_post");
        let last = lens.batch(1).unwrap().pos(-1).unwrap().top(1).unwrap();
        assert_eq!(figure["cells"][10 * 15 - 1], json!(last[4].tokens[0].0));
        assert_eq!(figure["top"]["k"], 10);
    }

    #[test]
    fn a_map_is_drawn_around_its_baseline() {
        let model = HookedTransformer::toy().unwrap();
        let (_, cache) = model.run_with_cache(CLEAN).unwrap();
        let metric = Metric::logit_diff(" Mary", " John");
        let map = patching::get_act_patch_resid_pre(&model, CORRUPTED, &cache, &metric).unwrap();
        let html = map.page().unwrap().to_html();
        assert_eq!(numbers(&html, 0, "values"), floats(&map.tensor()));
        let (_, figure) = data_of(&html, 0);
        let [low, high] = ["low", "high"].map(|end| figure["scale"][end].as_f64().unwrap());
        assert!(((low + high) / 2.0 - map.baseline().double_value(&[])).abs() < 1e-9);
    }

    #[test]
    fn patterns_of_a_cache_know_their_tokens() {
        let model = HookedTransformer::toy().unwrap();
        let run = RunOptions::new().cache(["blocks.1.attn.hook_pattern", "blocks.3.attn.hook_pattern"]).pos([2, -1]);
        let cache = model.run(CLEAN, run).unwrap().cache;
        let patterns = AttentionPatterns::of(&cache, 0).unwrap();
        let (bytes, figure) = data_of(&patterns.page().unwrap().to_html(), 0);
        assert_eq!(figure["queries"], json!([" Mary", " to"]));
        assert_eq!(figure["keys"].as_array().unwrap().len(), 15);
        assert_eq!(figure["panels"][7], json!([3, 3]));
        let stride = figure["stride"].as_u64().unwrap() as usize;
        let exact = floats(&cache[hook::pattern(3)].select(0, 0).select(0, 3)); // [2, 15]
        for (i, want) in exact.iter().enumerate() {
            let got = half_to_number(u16::from_le_bytes([bytes[7 * stride + 2 * i], bytes[7 * stride + 2 * i + 1]]));
            assert!((got - f64::from(*want)).abs() < 1e-3, "{got} {want}");
        }
        let error = AttentionPatterns::of(&cache, 1).unwrap_err().to_string();
        assert!(error.contains("row 1"), "{error}");
        assert!(patterns.head(2, 0).unwrap_err().to_string().contains("L2H0"));
        let none = model.run(CLEAN, RunOptions::new().cache("resid_post")).unwrap().cache;
        assert!(AttentionPatterns::of(&none, 0).unwrap_err().to_string().contains("blocks.0.attn.hook_pattern"));
    }

    #[test]
    fn log_probs_are_the_losses_and_answers_the_ranks() {
        let model = HookedTransformer::toy().unwrap();
        let text = [CLEAN, "The capital of France is"]; // the second is padded
        let tokens = model.to_tokens(text).unwrap();
        let logits = model.forward(tokens.clone()).unwrap();
        for (row, text) in text.iter().enumerate() {
            let of_row = TokenLogProbs::new(&model, &tokens, row, &logits, 3).unwrap();
            let run = RunOptions::new().return_type(tch_lens::ReturnType::LossPerToken);
            let losses = floats(model.run(*text, run).unwrap().loss_tensor().unwrap());
            let off = of_row.log_probs().iter().zip(&losses).map(|(p, loss)| (p + loss).abs()).fold(0.0, f32::max);
            assert!(off < 1e-4 && of_row.log_probs().len() == losses.len(), "{off}");
            let props = of_row.to_circuitsvis();
            let props = &props["props"];
            assert_eq!(props["topKTokens"].as_array().unwrap().len(), losses.len() + 1);
            // A token is of rank 0 where it was the likeliest.
            let mut firsts = 0;
            for (i, rank) in of_row.ranks().iter().enumerate() {
                assert_eq!(*rank == 0, props["topKTokens"][i][0] == props["prompt"][i + 1], "token {i}: rank {rank}");
                firsts += usize::from(*rank == 0);
            }
            assert!(firsts > 0);
        }
        let test = model.test_prompt(CLEAN, ["Mary"]).unwrap();
        let AnswerPosition { answers, .. } = &test.positions[0];
        let text = test.figure().unwrap().to_string();
        assert!(text.contains(&format!("{:.2} %", 100.0 * answers[0].probability)), "{text}");
    }
}
