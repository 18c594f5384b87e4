//! What is used of GObject and libnm. Whoever loads this plugin has loaded them.

use std::{
    ffi::{c_char, c_int, c_uint, c_void},
    ptr,
};

pub(crate) type GType = usize;
/// `G_TYPE_MAKE_FUNDAMENTAL (20)` of gobject/gtype.h
pub(crate) const G_TYPE_OBJECT: GType = 20 << 2;

/// Types of which only pointers are passed on.
macro_rules! opaque {
    ($($name:ident),*) => { $(#[repr(C)] pub(crate) struct $name { _own: [u8; 0] })* };
}
opaque!(GError, GValue, GParamSpec, NMConnection, NMSetting, NMVpnEditorPlugin);

#[repr(C)]
pub(crate) struct GTypeQuery {
    pub(crate) class: GType,
    pub(crate) name: *const c_char,
    pub(crate) class_size: c_uint,
    pub(crate) instance_size: c_uint,
}

impl Default for GTypeQuery {
    fn default() -> Self {
        Self { class: 0, name: ptr::null(), class_size: 0, instance_size: 0 }
    }
}

pub(crate) type Init = unsafe extern "C" fn(*mut c_void, *mut c_void);
pub(crate) type Property = unsafe extern "C" fn(*mut c_void, c_uint, *mut GValue, *mut GParamSpec);

#[repr(C)]
#[derive(Default)]
pub(crate) struct GInterfaceInfo {
    pub(crate) interface_init: Option<Init>,
    pub(crate) interface_finalize: Option<Init>,
    pub(crate) interface_data: usize,
}

/// The beginning of a class (gobject/gobject.h), as far as it is written.
#[repr(C)]
pub(crate) struct GObjectClass {
    class: GType,
    construct_properties: *mut c_void,
    constructor: *mut c_void,
    set_property: *mut c_void,
    /// `get_property`
    pub(crate) property: Option<Property>,
}

/// `NMVpnEditorPluginInterface` of nm-vpn-editor-plugin.h, as far as it is written.
#[repr(C)]
pub(crate) struct NMVpnEditorPluginInterface {
    interface: GType,
    instance: GType,
    /// `get_editor`
    pub(crate) editor: Option<
        unsafe extern "C" fn(
            *mut NMVpnEditorPlugin,
            *mut NMConnection,
            *mut *mut GError,
        ) -> *mut c_void,
    >,
    /// `get_capabilities`
    pub(crate) capabilities: Option<extern "C" fn(*mut NMVpnEditorPlugin) -> c_uint>,
    /// `import_from_file`
    pub(crate) import: Option<
        unsafe extern "C" fn(
            *mut NMVpnEditorPlugin,
            *const c_char,
            *mut *mut GError,
        ) -> *mut NMConnection,
    >,
    /// `export_to_file`
    pub(crate) export: Option<
        unsafe extern "C" fn(
            *mut NMVpnEditorPlugin,
            *const c_char,
            *mut NMConnection,
            *mut *mut GError,
        ) -> c_int,
    >,
    /// `get_suggested_filename`
    pub(crate) file_name:
        Option<unsafe extern "C" fn(*mut NMVpnEditorPlugin, *mut NMConnection) -> *mut c_char>,
}

pub(crate) type Each = unsafe extern "C" fn(*const c_char, *const c_char, *mut c_void);

unsafe extern "C" {
    pub(crate) fn g_free(memory: *mut c_void);
    pub(crate) fn g_object_class_override_property(
        class: *mut GObjectClass,
        number: c_uint,
        name: *const c_char,
    );
    pub(crate) fn g_object_new_with_properties(
        class: GType,
        count: c_uint,
        names: *const *const c_char,
        values: *const GValue,
    ) -> *mut c_void;
    pub(crate) fn g_object_set(object: *mut c_void, first: *const c_char, ...);
    pub(crate) fn g_set_error_literal(
        error: *mut *mut GError,
        domain: u32,
        code: c_int,
        message: *const c_char,
    );
    pub(crate) fn g_strdup(text: *const c_char) -> *mut c_char;
    pub(crate) fn g_type_add_interface_static(
        class: GType,
        interface: GType,
        info: *const GInterfaceInfo,
    );
    pub(crate) fn g_type_query(class: GType, found: *mut GTypeQuery);
    pub(crate) fn g_type_register_static_simple(
        parent: GType,
        name: *const c_char,
        class_size: c_uint,
        class_init: Option<Init>,
        instance_size: c_uint,
        instance_init: Option<Init>,
        flags: c_uint,
    ) -> GType;
    pub(crate) fn g_value_set_string(value: *mut GValue, text: *const c_char);

    pub(crate) fn nm_connection_add_setting(connection: *mut NMConnection, setting: *mut NMSetting);
    pub(crate) fn nm_connection_get_id(connection: *mut NMConnection) -> *const c_char;
    pub(crate) fn nm_connection_get_setting_vpn(connection: *mut NMConnection) -> *mut NMSetting;
    pub(crate) fn nm_setting_connection_new() -> *mut NMSetting;
    pub(crate) fn nm_setting_ip4_config_new() -> *mut NMSetting;
    pub(crate) fn nm_setting_ip6_config_new() -> *mut NMSetting;
    pub(crate) fn nm_setting_set_secret_flags(
        setting: *mut NMSetting,
        name: *const c_char,
        flags: c_uint,
        error: *mut *mut GError,
    ) -> c_int;
    pub(crate) fn nm_setting_vpn_add_data_item(
        setting: *mut NMSetting,
        key: *const c_char,
        text: *const c_char,
    );
    pub(crate) fn nm_setting_vpn_add_secret(
        setting: *mut NMSetting,
        key: *const c_char,
        text: *const c_char,
    );
    pub(crate) fn nm_setting_vpn_foreach_data_item(
        setting: *mut NMSetting,
        each: Each,
        data: *mut c_void,
    );
    pub(crate) fn nm_setting_vpn_new() -> *mut NMSetting;
    pub(crate) fn nm_simple_connection_new() -> *mut NMConnection;
    pub(crate) fn nm_utils_uuid_generate() -> *mut c_char;
    pub(crate) fn nm_utils_version() -> c_uint;
    pub(crate) fn nm_vpn_editor_plugin_get_type() -> GType;
    pub(crate) fn nm_vpn_plugin_error_quark() -> u32;
}
