//! Figures as the properties of circuitsvis' components.

use serde_json::{json, Value};

use super::color_scale::ColorScale;
use super::figure::{Drawing, Figure};
use super::results::no_form;
use super::token_log_probs::TokenLogProbs;
use crate::Result;

impl Figure {
    /// The figure as a component of circuitsvis: `{"component": name, "props": {…}}`. Attention patterns of one layer or head are
    /// `AttentionHeads`; tokens with one kind of values are `ColoredTokens`, with several `ColoredTokensMulti`. In Python,
    /// `circuitsvis.utils.render.render(component, **props)` draws it.
    ///
    /// ```
    /// use tch_lens::view::{Draw, TokenStrip};
    /// let strip = TokenStrip::new(["a", " b"], "loss", vec![0.5, 2.0])?;
    /// let component = strip.figure()?.to_circuitsvis()?;
    /// assert_eq!(component["component"], "ColoredTokens");
    /// assert_eq!(component["props"]["tokens"][1], " b");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`](crate::Error::WrongInput) for other kinds, and for patterns whose queries are not its keys.
    pub fn to_circuitsvis(&self) -> Result<Value> {
        match self.drawing() {
            Drawing::Patterns(patterns) => {
                if patterns.queries != patterns.keys {
                    return Err(no_form(
                        "a component of circuitsvis",
                        "its attention has the same tokens as queries and keys",
                    ));
                }
                let n = patterns.keys.len().max(1);
                let (mut attention, mut names) = (Vec::new(), Vec::new());
                for (panel, (layer, head)) in patterns.panels().enumerate() {
                    let rows: Vec<Vec<f32>> = patterns.values(panel)?.chunks(n).map(<[f32]>::to_vec).collect();
                    attention.push(rows);
                    names.push(format!("L{layer}H{head}"));
                }
                let props = json!({ "tokens": patterns.keys, "attention": attention, "attentionHeadNames": names });
                Ok(json!({ "component": "AttentionHeads", "props": props }))
            }
            Drawing::Tokens(strip) => match strip.series.as_slice() {
                [one] => {
                    let (low, high) = match one.scale {
                        ColorScale::Sequential { low, high } => (low, high),
                        ColorScale::Diverging { .. } => one.scale.ends(),
                    };
                    let props =
                        json!({ "tokens": strip.tokens, "values": one.values, "minValue": low, "maxValue": high });
                    Ok(json!({ "component": "ColoredTokens", "props": props }))
                }
                several => {
                    let values: Vec<Vec<f32>> = (0..strip.tokens.len())
                        .map(|token| several.iter().map(|series| series.values[token]).collect())
                        .collect(); // [token, series]
                    let labels: Vec<&str> = several.iter().map(|series| series.name.as_str()).collect();
                    let props = json!({ "tokens": strip.tokens, "values": values, "labels": labels });
                    Ok(json!({ "component": "ColoredTokensMulti", "props": props }))
                }
            },
            _ => Err(no_form("a component of circuitsvis", "attention patterns and token strips have one")),
        }
    }
}

impl TokenLogProbs {
    /// The component `TokenLogProbs` of circuitsvis: `{"component": name, "props": {…}}`.
    pub fn to_circuitsvis(&self) -> Value {
        let values: Vec<Vec<f32>> =
            self.top.iter().map(|list| list.iter().map(|(_, value)| *value).collect()).collect();
        let tokens: Vec<Vec<&str>> =
            self.top.iter().map(|list| list.iter().map(|(token, _)| token.as_str()).collect()).collect();
        let props = json!({
            "prompt": self.tokens,
            "topKLogProbs": values,
            "topKTokens": tokens,
            "correctTokenRank": self.ranks,
            "correctTokenLogProb": self.log_probs,
        });
        json!({ "component": "TokenLogProbs", "props": props })
    }
}
