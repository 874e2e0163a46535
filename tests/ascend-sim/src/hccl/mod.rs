//! Communicators and collectives: between the devices of one process and between processes over TCP.

pub mod address;
pub mod codes;
pub mod collective;
pub mod comm;
pub mod element;
pub mod exchange;
pub mod link;
pub mod mesh;
pub mod message;
pub mod rank_table;
pub mod root;
pub mod settings;
pub mod setup;
