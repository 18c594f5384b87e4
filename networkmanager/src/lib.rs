//! The plugin of roamd for whatever edits connections of NetworkManager: `nmcli connection import type roamd file
//! home.toml`, and `export`. There is no window to edit one in.
//!
//! It is a GObject with the interface `NMVpnEditorPlugin` (nm-vpn-editor-plugin.h). What a file means is roamd's to
//! say: `roamd network-manager --import FILE` prints the items of a connection, `--export` makes a file of them.
//!
//! It is linked to neither libnm nor GObject: the program that loads it must have loaded both for all (`RTLD_GLOBAL`), as
//! one that is linked to them has.

mod ffi;
mod roamd;

use std::{
    ffi::{CStr, CString, OsStr, c_char, c_int, c_uint, c_void},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    ptr,
    sync::OnceLock,
};

use ffi::{
    GError, GInterfaceInfo, GObjectClass, GParamSpec, GType, GTypeQuery, GValue, NMConnection,
    NMVpnEditorPlugin, NMVpnEditorPluginInterface,
};
use roamd::Items;

/// What D-Bus calls the service (nm-roamd-service.name).
const SERVICE: &CStr = c"org.freedesktop.NetworkManager.roamd";
const NAME: &CStr = c"roamd";
const DESCRIPTION: &CStr = c"A tunnel that moves from network to network";
/// The object's properties, by their numbers from 1 on.
const PROPERTIES: [(&CStr, &CStr); 3] =
    [(c"name", NAME), (c"description", DESCRIPTION), (c"service", SERVICE)];
/// `NM_VPN_EDITOR_PLUGIN_CAPABILITY_*`: import, export, IPv6, and no window.
const CAPABILITIES: c_uint = 0x1 | 0x2 | 0x4 | 0x8;
/// `NM_VPN_PLUGIN_ERROR_FAILED`
const FAILED: c_int = 1;
const TRUE: c_int = 1;
const FALSE: c_int = 0;
/// What ends a list of properties.
const NONE: *const c_char = ptr::null();
/// The first libnm with `auto-route-ext-gw`, as `NM_ENCODE_VERSION` has it.
const ROUTE_TO_GATEWAY: c_uint = 1 << 16 | 42 << 8;

/// What libnm asks a plugin for, once.
///
/// # Safety
///
/// libnm and GObject are loaded, as they are in whoever calls this.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nm_vpn_editor_plugin_factory(_error: *mut c_void) -> *mut c_void {
    static TYPE: OnceLock<GType> = OnceLock::new();
    // SAFETY: the type is registered, with the sizes of its parent; the list of properties is empty.
    unsafe {
        let class = *TYPE.get_or_init(|| register());
        ffi::g_object_new_with_properties(class, 0, ptr::null(), ptr::null())
    }
}

/// Registers a class that adds nothing to GObject but the interface.
unsafe fn register() -> GType {
    let mut parent = GTypeQuery::default();
    let interface =
        GInterfaceInfo { interface_init: Some(init_interface), ..GInterfaceInfo::default() };
    // SAFETY: GObject fills in `parent` and copies `interface`. Classes and objects of ours have the size of GObject's.
    unsafe {
        ffi::g_type_query(ffi::G_TYPE_OBJECT, &raw mut parent);
        let class = ffi::g_type_register_static_simple(
            ffi::G_TYPE_OBJECT,
            c"RoamdEditorPlugin".as_ptr(),
            parent.class_size,
            Some(init_class),
            parent.instance_size,
            None,
            0,
        );
        ffi::g_type_add_interface_static(
            class,
            ffi::nm_vpn_editor_plugin_get_type(),
            &raw const interface,
        );
        class
    }
}

unsafe extern "C" fn init_class(class: *mut c_void, _data: *mut c_void) {
    let class = class.cast::<GObjectClass>();
    // SAFETY: GObject made the class, as a copy of its parent's, and hands it to nobody else meanwhile. The interface
    // has properties of these names.
    unsafe {
        (*class).property = Some(property);
        for (number, (name, _)) in (1..).zip(PROPERTIES) {
            ffi::g_object_class_override_property(class, number, name.as_ptr());
        }
    }
}

unsafe extern "C" fn property(
    _object: *mut c_void,
    number: c_uint,
    value: *mut GValue,
    _spec: *mut GParamSpec,
) {
    let found = (number as usize).checked_sub(1).and_then(|at| PROPERTIES.get(at));
    if let Some((_, text)) = found {
        // SAFETY: all properties are texts, so the value is initialized to hold one; it is copied.
        unsafe { ffi::g_value_set_string(value, text.as_ptr()) };
    }
}

unsafe extern "C" fn init_interface(interface: *mut c_void, _data: *mut c_void) {
    let interface = interface.cast::<NMVpnEditorPluginInterface>();
    // SAFETY: GObject made the interface's table and hands it to nobody else meanwhile.
    unsafe {
        (*interface).editor = Some(editor);
        (*interface).capabilities = Some(capabilities);
        (*interface).import = Some(import);
        (*interface).export = Some(export);
        (*interface).file_name = Some(file_name);
    }
}

unsafe extern "C" fn editor(
    _plugin: *mut NMVpnEditorPlugin,
    _connection: *mut NMConnection,
    error: *mut *mut GError,
) -> *mut c_void {
    // SAFETY: the caller's error may be written.
    unsafe { fail(error, "there is no window for it: use nmcli connection modify") };
    ptr::null_mut()
}

extern "C" fn capabilities(_plugin: *mut NMVpnEditorPlugin) -> c_uint {
    CAPABILITIES
}

/// A connection of what the file says, or null and an error.
unsafe extern "C" fn import(
    _plugin: *mut NMVpnEditorPlugin,
    path: *const c_char,
    error: *mut *mut GError,
) -> *mut NMConnection {
    // SAFETY: the caller's path ends with a NUL.
    let path = unsafe { path_of(path) };
    // libnm takes UTF-8 only.
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = CString::new(&*name).unwrap_or_else(|_| NAME.into());
    match roamd::import(path) {
        // SAFETY: libnm is loaded.
        Ok(items) => unsafe { connection(&name, &items) },
        Err(said) => {
            // SAFETY: the caller's error may be written.
            unsafe { fail(error, &said) };
            ptr::null_mut()
        }
    }
}

/// # Safety
///
/// libnm is loaded.
unsafe fn connection(name: &CStr, items: &Items) -> *mut NMConnection {
    // SAFETY: the connection takes its settings over; libnm copies all texts; names and types of properties are those of
    // its documentation, and each list of them ends with null.
    unsafe {
        let connection = ffi::nm_simple_connection_new();
        let own = ffi::nm_setting_connection_new();
        let uuid = ffi::nm_utils_uuid_generate();
        ffi::g_object_set(
            own.cast(),
            c"id".as_ptr(),
            name.as_ptr(),
            c"uuid".as_ptr(),
            uuid,
            c"type".as_ptr(),
            c"vpn".as_ptr(),
            c"autoconnect".as_ptr(),
            FALSE,
            NONE,
        );
        ffi::g_free(uuid.cast());
        ffi::nm_connection_add_setting(connection, own);
        let vpn = ffi::nm_setting_vpn_new();
        // It does not end with the link that it began on.
        ffi::g_object_set(
            vpn.cast(),
            c"service-type".as_ptr(),
            SERVICE.as_ptr(),
            c"persistent".as_ptr(),
            TRUE,
            NONE,
        );
        for (key, text) in &items.data {
            ffi::nm_setting_vpn_add_data_item(vpn, key.as_ptr(), text.as_ptr());
        }
        for (key, text) in &items.secrets {
            ffi::nm_setting_vpn_add_secret(vpn, key.as_ptr(), text.as_ptr());
            ffi::nm_setting_set_secret_flags(vpn, key.as_ptr(), 0, ptr::null_mut());
        }
        ffi::nm_connection_add_setting(connection, vpn);
        for ip in [ffi::nm_setting_ip4_config_new(), ffi::nm_setting_ip6_config_new()] {
            ffi::g_object_set(ip.cast(), c"method".as_ptr(), c"auto".as_ptr(), NONE);
            if ffi::nm_utils_version() >= ROUTE_TO_GATEWAY {
                // A route to the server would be one over a single link.
                ffi::g_object_set(ip.cast(), c"auto-route-ext-gw".as_ptr(), FALSE, NONE);
            }
            ffi::nm_connection_add_setting(connection, ip);
        }
        connection
    }
}

/// Writes the file that the connection is the same as, but for its secrets: others may read the file that is there.
unsafe extern "C" fn export(
    _plugin: *mut NMVpnEditorPlugin,
    path: *const c_char,
    connection: *mut NMConnection,
    error: *mut *mut GError,
) -> c_int {
    // SAFETY: the caller's path ends with a NUL, the connection is one of libnm's, and `items` is what `add` expects.
    let exported = unsafe {
        let vpn = ffi::nm_connection_get_setting_vpn(connection);
        let mut items = Items::default();
        if !vpn.is_null() {
            ffi::nm_setting_vpn_foreach_data_item(vpn, add, (&raw mut items.data).cast());
        }
        roamd::export(&items, path_of(path))
    };
    match exported {
        Ok(()) => TRUE,
        Err(said) => {
            // SAFETY: the caller's error may be written.
            unsafe { fail(error, &said) };
            FALSE
        }
    }
}

unsafe extern "C" fn add(key: *const c_char, text: *const c_char, items: *mut c_void) {
    // SAFETY: `export` hands over the list, and libnm texts that end with a NUL.
    unsafe {
        let items = &mut *items.cast::<Vec<(CString, CString)>>();
        items.push((CStr::from_ptr(key).into(), CStr::from_ptr(text).into()));
    }
}

unsafe extern "C" fn file_name(
    _plugin: *mut NMVpnEditorPlugin,
    connection: *mut NMConnection,
) -> *mut c_char {
    // SAFETY: the connection is one of libnm's, and its name ends with a NUL, if it has one; the copy is the caller's.
    unsafe {
        let name = ffi::nm_connection_get_id(connection);
        let name = if name.is_null() { NAME } else { CStr::from_ptr(name) };
        let plain = |byte: &u8| if *byte == b'/' { b'-' } else { *byte };
        let mut file: Vec<u8> = name.to_bytes().iter().map(plain).collect();
        file.extend(b".toml");
        ffi::g_strdup(CString::new(file).unwrap_or_default().as_ptr())
    }
}

/// # Safety
///
/// The path ends with a NUL.
unsafe fn path_of<'a>(path: *const c_char) -> &'a Path {
    // SAFETY: as the caller promises.
    Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()))
}

/// # Safety
///
/// `error` is null, or may be written.
unsafe fn fail(error: *mut *mut GError, said: &str) {
    let said = CString::new(said.replace('\0', " ")).unwrap_or_default();
    // SAFETY: GLib copies the text, and does nothing where `error` is null.
    unsafe {
        ffi::g_set_error_literal(error, ffi::nm_vpn_plugin_error_quark(), FAILED, said.as_ptr());
    }
}
