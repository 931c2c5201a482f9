//! Dictionaries from files: encoding and decoding, compared with SAELens, sparsify and circuit-tracer (`tests/fixtures/sae`,
//! `tests/fixtures/circuit_tracer`).

use tch::{Kind, Tensor};
use tch_lens::{DictionaryOptions, DictionarySet, HookedTransformer, RunOptions};

use crate::common::{fixtures, raw, read};

const TOLERANCE: f64 = 1e-5;

fn model(name: &str) -> HookedTransformer {
    match name {
        "toy" => {
            HookedTransformer::from_pretrained_no_processing(crate::common::repository().join("models/toy")).unwrap()
        }
        fixture => raw(fixture),
    }
}

/// The largest entry of a difference.
fn diff(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

#[test]
fn circuit_tracer_s_active_features_are_found() {
    for (case, of) in
        [("toy_plt", "toy"), ("toy_skip_jumprelu", "toy"), ("toy_clt", "toy"), ("llama_plt", "llama_gqa_tied")]
    {
        let folder = fixtures().join("circuit_tracer").join(case);
        let expected = read(&folder.join("graph.safetensors"));
        let (model, tokens) = (model(of), expected["tokens"].reshape([1, -1]));
        let places = &expected["active_features"]; // [active, (layer, pos, feature)]
        for options in [DictionaryOptions::new(), DictionaryOptions::new().decoders_on_demand()] {
            let set: DictionarySet = options.open_set(&folder).unwrap();
            assert_eq!(set.scan(), Some(format!("seen/{case}").as_str()));
            assert_eq!(set.is_cross_layer(), case == "toy_clt");
            let points: Vec<_> = set.dictionaries().iter().map(|dictionary| dictionary.hook_in()).collect();
            let cache = model.run(&tokens, RunOptions::new().cache(points)).unwrap().cache;
            let mut acts = Vec::new();
            for dictionary in set.dictionaries() {
                let x = &cache[dictionary.hook_in()];
                let dense = dictionary.encode(x).unwrap();
                assert!(diff(&dense, &dictionary.encode_sparse(x).unwrap().to_dense().unwrap()) < 1e-6);
                acts.push(dense.squeeze_dim(0));
            }
            let acts = Tensor::stack(&acts, 0); // [layer, pos, feature]
            let _ = acts.narrow(1, 0, 1).zero_(); // circuit-tracer leaves out the first position
            assert_eq!(diff(&acts.nonzero(), places), 0.0, "{case}");
            let values = acts.index(&[0, 1, 2].map(|axis| Some(places.select(1, axis))));
            let differs = diff(&values, &expected["activation_values"]);
            println!("{case}: {differs:.1e}");
            assert!(differs < TOLERANCE, "{case}: {differs:.1e}");
            let first = &set.dictionaries()[0];
            let rows = first.decoder_rows(0, &Tensor::from_slice(&[3i64, 1])).unwrap();
            assert_eq!(diff(&rows, &first.w_dec().unwrap().index_select(0, &Tensor::from_slice(&[3i64, 1]))), 0.0);
            assert_eq!(rows.kind(), Kind::Float);
        }
    }
}
