//! Annotations of a sandbox → settings (O-07 to O-16).
//!
//! ```text
//!  all annotations ─► allow-list over every hypervisor annotation ─► unknown names ─► values, on a copy
//! ```
//!
//! Owns the order of checks: nothing is applied before everything is allowed, and an error yields no
//! settings at all. Never: which options exist (see `options`).

use crate::files::HostFiles;
use crate::line::line;
use crate::opt::{Opt, Section};
use crate::options::{OPTIONS, Settings};
use crate::suggest::{hint, nearest};
use std::collections::BTreeMap;

/// Annotations as planning sees them, ordered so that the first error is always the same one.
pub type Annotations = BTreeMap<String, String>;

/// Why an annotation is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// Not matched by the allow-list (O-07).
    #[error(
        "annotation {annotation} is not enabled: expected hypervisor.enable_annotations to match {name:?}"
    )]
    NotEnabled {
        /// Its key.
        annotation: String,
        /// What the allow-list is matched against.
        name: String,
    },
    /// There is no such option.
    #[error("annotation {annotation} is unknown{}", hint(suggestion.as_deref()))]
    Unknown {
        /// Its key.
        annotation: String,
        /// The nearest one there is.
        suggestion: Option<String>,
    },
    /// A value the option does not take.
    #[error("annotation {annotation} is {value}: expected {expected}")]
    Value {
        /// Its key.
        annotation: String,
        /// Its value.
        value: String,
        /// What it takes.
        expected: String,
    },
    /// A path that no glob names (O-08).
    #[error("annotation {annotation} is {value:?}: expected an existing path that {globs} names")]
    Path {
        /// Its key.
        annotation: String,
        /// Its value.
        value: String,
        /// The option with the globs.
        globs: String,
    },
}

/// The settings of one sandbox: `configured`, changed by the annotations of its spec.
///
/// # Errors
/// The first [`AnnotationError`]; `configured` is never half changed.
pub fn apply(
    configured: &Settings,
    annotations: &Annotations,
    files: &dyn HostFiles,
) -> Result<Settings, AnnotationError> {
    allowed(configured, annotations)?;
    let mut settings = configured.clone();
    for (annotation, text) in annotations {
        match find(annotation) {
            Found::Option(opt) if opt.section != Section::Resource => {
                set(&mut settings, configured, opt, annotation, text, files)?;
            }
            Found::Option(_) | Found::Foreign => {}
            Found::Unknown(section) => return Err(unknown(annotation, section)),
        }
    }
    Ok(settings)
}

/// The settings of one container: only what its container-resource annotations set (C-08).
///
/// # Errors
/// The first [`AnnotationError`].
pub fn apply_resource(annotations: &Annotations, files: &dyn HostFiles) -> Result<Settings, AnnotationError> {
    let (mut settings, usual) = (Settings::default(), Settings::default());
    for (annotation, text) in annotations {
        match find(annotation) {
            Found::Option(opt) if opt.section == Section::Resource => {
                set(&mut settings, &usual, opt, annotation, text, files)?;
            }
            Found::Unknown(Section::Resource) => return Err(unknown(annotation, Section::Resource)),
            Found::Option(_) | Found::Unknown(_) | Found::Foreign => {}
        }
    }
    Ok(settings)
}

/// O-07: every hypervisor annotation is held against the allow-list before any is looked at.
fn allowed(configured: &Settings, annotations: &Annotations) -> Result<(), AnnotationError> {
    let Some(prefix) = Section::Hypervisor.annotation_prefix() else {
        return Ok(());
    };
    for annotation in annotations.keys() {
        if let Some(name) = annotation.strip_prefix(prefix)
            && !configured.hypervisor.enable_annotations.allow(name)
        {
            return Err(AnnotationError::NotEnabled {
                annotation: line(annotation),
                name: line(name),
            });
        }
    }
    Ok(())
}

enum Found {
    Option(&'static Opt),
    Unknown(Section),
    Foreign,
}

fn find(annotation: &str) -> Found {
    if let Some(opt) = OPTIONS.iter().find(|o| o.columns.alias == Some(annotation)) {
        return Found::Option(opt);
    }
    for section in Section::ALL {
        let Some(key) = section
            .annotation_prefix()
            .and_then(|prefix| annotation.strip_prefix(prefix))
        else {
            continue;
        };
        return OPTIONS
            .iter()
            .find(|o| o.section == section && o.key == key && o.columns.annotation)
            .map_or(Found::Unknown(section), Found::Option);
    }
    Found::Foreign
}

fn unknown(annotation: &str, section: Section) -> AnnotationError {
    let names: Vec<String> = OPTIONS.iter().filter_map(Opt::annotation).collect();
    let key = annotation
        .strip_prefix(section.annotation_prefix().unwrap_or_default())
        .unwrap_or(annotation);
    let elsewhere = OPTIONS.iter().find(|o| o.key == key && o.columns.annotation);
    let suggestion = elsewhere
        .and_then(Opt::annotation)
        .or_else(|| nearest(annotation, names.iter().map(String::as_str)).map(str::to_owned));
    AnnotationError::Unknown {
        annotation: line(annotation),
        suggestion,
    }
}

fn set(
    settings: &mut Settings,
    configured: &Settings,
    opt: &Opt,
    annotation: &str,
    text: &str,
    files: &dyn HostFiles,
) -> Result<(), AnnotationError> {
    // The globs come from the configuration, never from what annotations made of it.
    if let Some((globs, of)) = opt.columns.globs
        && !(of(configured).name(text) && files.exists(text.as_ref()))
    {
        return Err(AnnotationError::Path {
            annotation: annotation.to_owned(),
            value: text.to_owned(),
            globs: format!("{}.{globs}", opt.section.name()),
        });
    }
    (opt.set_text)(settings, text, &opt.columns)
        .map(|_| ())
        .map_err(|refused| AnnotationError::Value {
            annotation: annotation.to_owned(),
            value: refused.value,
            expected: refused.expected,
        })
}
