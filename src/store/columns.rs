//! How a value of ours becomes a column, and how a row becomes a struct of the model.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::{Database, Decode, Encode, Type};

use crate::clock::Timestamp;
use crate::credits::{Credits, Factor, Usd};
use crate::id::Id;
use crate::model::accounts::JsonText;

macro_rules! stored_as_integer {
    ($($type:ty, $get:ident, $make:ident;)*) => {$(
        impl<DB: Database> Type<DB> for $type where i64: Type<DB> {
            fn type_info() -> DB::TypeInfo {
                i64::type_info()
            }
            fn compatible(ty: &DB::TypeInfo) -> bool {
                i64::compatible(ty)
            }
        }
        impl<'q, DB: Database> Encode<'q, DB> for $type where i64: Encode<'q, DB> {
            fn encode_by_ref(&self, buf: &mut DB::ArgumentBuffer) -> Result<IsNull, BoxDynError> {
                self.$get().encode_by_ref(buf)
            }
        }
        impl<'r, DB: Database> Decode<'r, DB> for $type where i64: Decode<'r, DB> {
            fn decode(value: DB::ValueRef<'r>) -> Result<Self, BoxDynError> {
                i64::decode(value).map(Self::$make)
            }
        }
    )*};
}

stored_as_integer! {
    Timestamp, as_micros, from_micros;
    Credits, nanos, from_nanos;
    Usd, nanos, from_nanos;
    Factor, nanos, from_nanos;
    crate::model::marketplace::Stars, micros, from_micros;
}

impl<T, DB: Database> Type<DB> for Id<T>
where
    String: Type<DB>,
{
    fn type_info() -> DB::TypeInfo {
        String::type_info()
    }
    fn compatible(ty: &DB::TypeInfo) -> bool {
        String::compatible(ty)
    }
}
impl<'q, T, DB: Database> Encode<'q, DB> for Id<T>
where
    String: Encode<'q, DB>,
{
    fn encode_by_ref(&self, buf: &mut DB::ArgumentBuffer) -> Result<IsNull, BoxDynError> {
        self.as_str().to_owned().encode(buf)
    }
}
impl<'r, T, DB: Database> Decode<'r, DB> for Id<T>
where
    &'r str: Decode<'r, DB>,
{
    fn decode(value: DB::ValueRef<'r>) -> Result<Self, BoxDynError> {
        <&str>::decode(value).map(Self::stored)
    }
}

impl<DB: Database> Type<DB> for JsonText
where
    String: Type<DB>,
{
    fn type_info() -> DB::TypeInfo {
        String::type_info()
    }
    fn compatible(ty: &DB::TypeInfo) -> bool {
        String::compatible(ty)
    }
}
impl<'q, DB: Database> Encode<'q, DB> for JsonText
where
    String: Encode<'q, DB>,
{
    fn encode_by_ref(&self, buf: &mut DB::ArgumentBuffer) -> Result<IsNull, BoxDynError> {
        self.get().to_owned().encode(buf)
    }
}
impl<'r, DB: Database> Decode<'r, DB> for JsonText
where
    String: Decode<'r, DB>,
{
    fn decode(value: DB::ValueRef<'r>) -> Result<Self, BoxDynError> {
        Ok(Self(serde_json::value::RawValue::from_string(String::decode(value)?)?))
    }
}

/// Implements the column form of an enum that has `as_str` and `ALL`.
macro_rules! stored_as_name {
    ($($type:ty),* $(,)?) => {$(
        impl<DB: sqlx::Database> sqlx::Type<DB> for $type where String: sqlx::Type<DB> {
            fn type_info() -> DB::TypeInfo {
                <String as sqlx::Type<DB>>::type_info()
            }
            fn compatible(ty: &DB::TypeInfo) -> bool {
                <String as sqlx::Type<DB>>::compatible(ty)
            }
        }
        impl<'q, DB: sqlx::Database> sqlx::Encode<'q, DB> for $type where String: sqlx::Encode<'q, DB> {
            fn encode_by_ref(
                &self,
                buf: &mut DB::ArgumentBuffer,
            ) -> std::result::Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
                sqlx::Encode::<DB>::encode(self.as_str().to_owned(), buf)
            }
        }
        impl<'r, DB: sqlx::Database> sqlx::Decode<'r, DB> for $type where &'r str: sqlx::Decode<'r, DB> {
            fn decode(value: DB::ValueRef<'r>) -> std::result::Result<Self, sqlx::error::BoxDynError> {
                let name = <&str as sqlx::Decode<'r, DB>>::decode(value)?;
                <$type>::ALL
                    .into_iter()
                    .find(|known| known.as_str() == name)
                    .ok_or_else(|| format!("{name:?} is not a {}", stringify!($type)).into())
            }
        }
    )*};
}
pub(super) use stored_as_name;

stored_as_name!(
    crate::context::Domain,
    crate::model::usage::RouteKind,
    crate::model::usage::CostSource,
    crate::model::scope::ScopeType,
    crate::model::accounts::AccountStatus,
    crate::model::directory::LookupState,
    crate::model::directory::UserStatus,
);

/// Reads a struct of the model from columns of the same names, on each driver.
macro_rules! from_columns {
    ($($type:ty { $($column:ident),* $(,)? })*) => {$(
        #[cfg(feature = "sqlite")]
        impl sqlx::FromRow<'_, sqlx::sqlite::SqliteRow> for $type {
            fn from_row(row: &sqlx::sqlite::SqliteRow) -> sqlx::Result<Self> {
                use sqlx::Row;
                Ok(Self { $($column: row.try_get(stringify!($column))?),* })
            }
        }
        #[cfg(feature = "postgres")]
        impl sqlx::FromRow<'_, sqlx::postgres::PgRow> for $type {
            fn from_row(row: &sqlx::postgres::PgRow) -> sqlx::Result<Self> {
                use sqlx::Row;
                Ok(Self { $($column: row.try_get(stringify!($column))?),* })
            }
        }
    )*};
}
pub(super) use from_columns;
