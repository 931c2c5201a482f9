//! What hook points cost where nobody looks at them: the forward pass beside the bare tensor operations that it consists of.
//!
//! `cargo bench -p tch-lens-benches --bench hooks` prints criterion's figures, and ratios of the two timed in turns, on a model of GPT-2 small's shape.

mod support;

use std::collections::HashMap;
use std::process::Command;

use criterion::{criterion_group, Criterion};
use support::{gpt2_small, in_turns, tokens};
use tch::{Kind, Tensor};
use tch_lens::HookedTransformer;

/// GPT-2 on bare tensors, with the weights of a [`HookedTransformer`].
struct Bare {
    embed: Tensor,
    positions: Tensor,
    blocks: Vec<BareBlock>,
    ln_final: (Tensor, Tensor),
    unembed: (Tensor, Tensor),
}

struct BareBlock {
    ln1: (Tensor, Tensor),
    qkv: (Tensor, Tensor),
    o: (Tensor, Tensor),
    ln2: (Tensor, Tensor),
    mlp_in: (Tensor, Tensor),
    mlp_out: (Tensor, Tensor),
}

impl Bare {
    fn of(model: &HookedTransformer) -> Self {
        let mut all: HashMap<String, Tensor> = model.parameters().into_iter().collect();
        // A tied unembedding is the embedding.
        let unembed = ["unembed.weight", "embed.W_E"].iter().find_map(|name| all.get(*name).map(Tensor::shallow_clone));
        let mut take = |name: String| all.remove(&name).unwrap_or_else(|| panic!("no {name}"));
        let mut pair = |name: &str, w: &str, b: &str| (take(format!("{name}.{w}")), take(format!("{name}.{b}")));
        let blocks = (0..model.config().n_layers).map(|l| {
            let mut of = |name: &str, w, b| pair(&format!("blocks.{l}.{name}"), w, b);
            BareBlock {
                ln1: of("ln1", "w", "b"),
                qkv: of("attn.qkv", "weight", "bias"),
                o: of("attn.o", "weight", "bias"),
                ln2: of("ln2", "w", "b"),
                mlp_in: of("mlp.in", "weight", "bias"),
                mlp_out: of("mlp.out", "weight", "bias"),
            }
        });
        let blocks = blocks.collect();
        let ln_final = pair("ln_final", "w", "b");
        let unembed = (unembed.expect("an embedding"), take("unembed.b_U".into()));
        Bare { embed: take("embed.W_E".into()), positions: take("pos_embed.W_pos".into()), blocks, ln_final, unembed }
    }

    fn forward(&self, tokens: &Tensor) -> Tensor {
        let (batch, pos) = (tokens.size()[0], tokens.size()[1]);
        let d_model = self.embed.size()[1];
        let norm = |x: &Tensor, (w, b): &(Tensor, Tensor)| x.layer_norm([d_model], Some(w), Some(b), 1e-5, false);
        let linear = |x: &Tensor, (w, b): &(Tensor, Tensor)| x.linear(w, Some(b));
        let mut x = Tensor::embedding(&self.embed, tokens, -1, false, false) + self.positions.narrow(0, 0, pos);
        for block in &self.blocks {
            let qkv = linear(&norm(&x, &block.ln1), &block.qkv).view([batch, pos, 36, 64]);
            let part = |i: i64| qkv.narrow(2, 12 * i, 12).transpose(1, 2); // [batch, head, pos, d_head]
            let (q, k, v) = (part(0), part(1), part(2));
            let z = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0.0, true, Some(0.125), false);
            x += linear(&z.transpose(1, 2).reshape([batch, pos, d_model]), &block.o);
            let mut neurons = linear(&norm(&x, &block.ln2), &block.mlp_in);
            x += linear(&neurons.gelu_("tanh"), &block.mlp_out);
        }
        linear(&norm(&x, &self.ln_final), &self.unembed)
    }
}

fn both() -> (HookedTransformer, Bare) {
    let model = gpt2_small();
    let bare = Bare::of(&model);
    let tokens = tokens(2, 16);
    let difference = (model.forward(&tokens).unwrap() - bare.forward(&tokens)).abs().max().double_value(&[]);
    assert!(difference < 1e-4, "the two differ by {difference:.1e}");
    (model, bare)
}

fn hooks(criterion: &mut Criterion) {
    let (model, bare) = both();
    let mut group = criterion.benchmark_group("hooks");
    group.sample_size(20);
    for pos in [16, 128] {
        let tokens = tokens(1, pos);
        group.bench_function(format!("no hooks, 1x{pos}"), |b| b.iter(|| model.forward(&tokens).unwrap()));
        group.bench_function(format!("bare, 1x{pos}"), |b| b.iter(|| bare.forward(&tokens)));
    }
    group.finish();
}

criterion_group!(benches, hooks);

fn main() {
    // The bare operations are libtorch's own; so must the run's be, or the products are compared and not the hooks.
    if std::env::var("TCH_LENS_ONEDNN").as_deref() != Ok("0") {
        let mut again = Command::new(std::env::current_exe().unwrap());
        let status = again.args(std::env::args().skip(1)).env("TCH_LENS_ONEDNN", "0").status().unwrap();
        std::process::exit(status.code().unwrap_or(1));
    }
    benches();
    let (model, bare) = both();
    println!();
    let of_pos = |pos, rounds| {
        let tokens = tokens(1, pos).to_kind(Kind::Int64);
        let times = in_turns(
            rounds,
            &mut [
                (&format!("no hooks, 1x{pos}"), &mut || drop(model.forward(&tokens).unwrap())),
                (&format!("bare, 1x{pos}"), &mut || drop(bare.forward(&tokens))),
            ],
        );
        times[0] / times[1]
    };
    for (pos, rounds) in [(16, 201), (128, 101)] {
        println!("no hooks / bare, 1x{pos}: {:.4}\n", of_pos(pos, rounds));
    }
}
