//! How generations are drawn.

use tch::Kind;

use super::color_scale::ColorScale;
use super::figure::{Draw, Figure};
use super::results::{floats, LISTED};
use super::table::Table;
use super::top_tokens::TopTokens;
use crate::hooked_transformer::Generated;
use crate::Result;

impl Draw for Generated {
    /// A step in each row of the table, with the token of each continuation. Where the logits were kept
    /// ([`StepOptions::logits`](crate::StepOptions::logits)), tokens are coloured by their probability before sampling options, with the
    /// likeliest ones behind them; else, where entropies were kept, by these.
    fn figure(&self) -> Result<Figure> {
        let n_rows = self.rows.len();
        let steps = self.rows.iter().map(|row| row.new_ids().len()).max().unwrap_or(0);
        let text = |id: i64| self.token_text(id);
        let mut cells = vec![String::new(); steps * n_rows];
        let mut values = vec![f32::NAN; steps * n_rows];
        let mut lists: Vec<Vec<(String, f32)>> = vec![Vec::new(); steps * n_rows];
        for (column, row) in self.rows.iter().enumerate() {
            for (step, id) in row.new_ids().iter().enumerate() {
                cells[step * n_rows + column] = text(*id);
            }
            let logits = self.logits.as_ref().and_then(|logits| logits.get(column));
            if let Some(logits) = logits.filter(|logits| logits.size()[0] > 0) {
                let probs = logits.f_softmax(-1, Kind::Float)?; // [step, d_vocab_out]
                let k = LISTED.min(probs.size()[1]);
                let (top, ids) = probs.f_topk(k, -1, true, true)?; // [step, k]
                let top = floats(&top)?;
                let ids = Vec::<i64>::try_from(ids.f_reshape(-1)?.f_to_device(tch::Device::Cpu)?)?;
                for (step, id) in row.new_ids().iter().enumerate().take(probs.size()[0] as usize) {
                    let cell = step * n_rows + column;
                    values[cell] = probs.f_double_value(&[step as i64, *id])? as f32;
                    let of_step = step * k as usize..(step + 1) * k as usize;
                    lists[cell] = of_step.map(|i| (text(ids[i]), top[i])).collect();
                }
            } else if let Some(entropies) = self.entropies.as_ref().and_then(|entropies| entropies.get(column)) {
                for (step, entropy) in entropies.iter().enumerate().take(steps) {
                    values[step * n_rows + column] = *entropy as f32;
                }
            }
        }
        let columns = (0..n_rows).map(|row| if n_rows == 1 { "token".into() } else { format!("row {row}") });
        let table = Table::new("step", (0..steps).map(|step| step.to_string()), columns, cells)?;
        let (table, caption) = match (&self.logits, &self.entropies) {
            (Some(_), _) => {
                let table = table.values("probability", values)?;
                let table = table.color_scale(ColorScale::Sequential { low: 0.0, high: 1.0 })?;
                let table = table.top_tokens(TopTokens::new("probability", &lists))?;
                (table, "Each token is coloured by its probability. The list shows what was likeliest in its place.")
            }
            (None, Some(_)) => (
                table.values("entropy", values)?,
                "Each token is coloured by the entropy of the model's distribution, in nats.",
            ),
            (None, None) => (table, "The token of each step."),
        };
        Ok(Figure::new("Generation", table).with_caption(caption))
    }
}
