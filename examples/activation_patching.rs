//! Where is the answer decided? Activations of a clean prompt are patched into a corrupted one.
//!
//! Prints maps of the difference between the logits of the answer and of the other name: with the stream of the clean run at each
//! layer and position, and with the output of each head. What will be seen on the toy model, whose corrupted prompt names the
//! other giver: the clean stream matters at that name (position 10) before layer 0, two positions later before layer 1, at the last
//! word but one before layers 2 and 3, and at the last word in the end. So heads hand the name on from position to position. One head
//! of layer 0, L0H3, carries nearly all of it; after it, heads of layers 1 and 3 share the work, each in part.
//!
//! ```text
//! cargo run --release --example activation_patching
//! cargo run --release --example activation_patching -- --clean "…" --corrupted "…" --answer " Mary" --wrong " John"
//! ```

use std::error::Error;

use lexopt::prelude::*;
use tch_lens::patching::{get_act_patch_attn_head_out_all_pos, get_act_patch_resid_pre};
use tch_lens::{HookedTransformer, Metric, RunOptions};

fn main() -> Result<(), Box<dyn Error>> {
    tch_lens::tune_allocator();
    let mut clean = String::from("When Mary and John went to the shop, John gave a bag to");
    let mut corrupted = String::from("When Mary and John went to the shop, Mary gave a bag to");
    let (mut answer, mut wrong, mut folder) = (String::from(" Mary"), String::from(" John"), None);
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("model") => folder = Some(arguments.value()?.string()?),
            Long("clean") => clean = arguments.value()?.string()?,
            Long("corrupted") => corrupted = arguments.value()?.string()?,
            Long("answer") => answer = arguments.value()?.string()?,
            Long("wrong") => wrong = arguments.value()?.string()?,
            Short('h') | Long("help") => {
                println!("--model FOLDER, --clean TEXT, --corrupted TEXT, --answer TOKEN, --wrong TOKEN");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let model = match folder {
        Some(folder) => HookedTransformer::from_pretrained(folder)?,
        None => HookedTransformer::toy()?,
    };
    let metric = Metric::logit_diff(answer.as_str(), wrong.as_str());
    let output = model.run(clean.as_str(), RunOptions::new().cache(["resid_pre", "z"]))?;
    let difference = metric.scalar(output.logits()?, &output.cache)?.double_value(&[]);
    println!("clean:     {clean}\ncorrupted: {corrupted}");
    println!("logit of {answer:?} less that of {wrong:?}: {difference:.2} in the clean run\n");

    let by_position = get_act_patch_resid_pre(&model, corrupted.as_str(), &output.cache, &metric)?;
    println!(
        "{:.2} in the corrupted run; with the clean stream before a layer, at a position:",
        by_position.baseline().double_value(&[])
    );
    println!("{by_position}\n");
    for (i, token) in model.to_str_tokens(corrupted.as_str())?.iter().enumerate() {
        print!("{i} {token:?} ");
    }
    println!("\n\nwith the clean output of a head, at all positions:");
    println!("{}", get_act_patch_attn_head_out_all_pos(&model, corrupted.as_str(), &output.cache, &metric)?);
    Ok(())
}
