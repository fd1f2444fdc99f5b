//! "Did you mean": the known name nearest to an unknown one.

/// The candidate nearest to `name`, if one is near enough to be meant.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A long name costs time and is no typing error.
    if name.len() > 100 {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(score, _)| *score > 0.82)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// The end of a message about an unknown name.
pub(crate) fn hint(suggestion: Option<&str>) -> String {
    suggestion
        .map(|name| format!(" (did you mean {name}?)"))
        .unwrap_or_default()
}
