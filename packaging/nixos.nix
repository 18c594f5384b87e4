# A NixOS module, and the package that it runs.
#
#   imports = [ /path/to/roamd/packaging/nixos.nix ];
#   services.roamd.tunnels.home.settings = {
#     role = "client";
#     private-key-file = "/var/lib/secrets/home.key";   # for the user roamd alone; never in the store
#     server = { address = [ "vpn.example.net" ]; public-key = "..."; };
#   };
#
# Checked: the syntax, and the module's values with stand-ins for nixpkgs' functions (nix-instantiate 2.8). Not checked: a build
# or a machine with NixOS.
{ config, lib, pkgs, ... }:

let
  cfg = config.services.roamd;
  toml = pkgs.formats.toml { };
  manifest = builtins.fromTOML (builtins.readFile ../Cargo.toml);
  roamd = pkgs.rustPlatform.buildRustPackage {
    pname = "roamd";
    version = manifest.workspace.package.version;
    src = lib.cleanSourceWith {
      src = lib.cleanSource ../.;
      filter = path: _: baseNameOf path != "target";
    };
    cargoLock.lockFile = ../Cargo.lock;
    buildFeatures = [ "etcd" ];
    cargoBuildFlags = [ "-p" "roamd" "-p" "roamd-networkmanager" ];
    nativeBuildInputs = [ pkgs.protobuf pkgs.cmake pkgs.rustPlatform.bindgenHook ];
    # The end-to-end tests need root and network namespaces.
    cargoTestFlags = [ "--lib" ];
    postInstall = ''
      cargo run --release --offline --features etcd --example assets -- assets
      install -Dm644 assets/roamd*.8 -t $out/share/man/man8
      install -Dm644 assets/roamd.toml.5 -t $out/share/man/man5
      install -Dm644 assets/roamd.bash $out/share/bash-completion/completions/roamd
      install -Dm644 assets/roamd.fish -t $out/share/fish/vendor_completions.d
      install -Dm644 assets/_roamd -t $out/share/zsh/site-functions
      install -Dm644 systemd/roamd@.service -t $out/lib/systemd/system
      install -Dm644 systemd/roamd-notify.service -t $out/lib/systemd/user
      install -Dm644 config/icons/*.svg -t $out/share/icons/hicolor/symbolic/apps
      install -Dm644 systemd/polkit.rules $out/share/polkit-1/rules.d/roamd.rules
      networkmanager=$out/lib/NetworkManager
      install -Dm755 systemd/networkmanager/nm-roamd-service systemd/networkmanager/nm-roamd-auth-dialog -t $networkmanager
      install -Dm644 systemd/networkmanager/nm-roamd-service.name -t $networkmanager/VPN
      install -Dm644 systemd/networkmanager/nm-roamd-service.conf -t $out/share/dbus-1/system.d
      mv $out/lib/libnm_vpn_plugin_roamd.so $networkmanager/libnm-vpn-plugin-roamd.so
      substituteInPlace $out/lib/systemd/system/roamd@.service $out/lib/systemd/user/roamd-notify.service \
        $networkmanager/nm-roamd-service $networkmanager/nm-roamd-auth-dialog --replace-fail /usr/bin/roamd $out/bin/roamd
      substituteInPlace $networkmanager/VPN/nm-roamd-service.name --replace-fail /usr/lib/NetworkManager $networkmanager
    '';
    # Where networking.networkmanager.plugins finds it in lib/NetworkManager.
    passthru.networkManagerPlugin = "VPN/nm-roamd-service.name";
    meta = {
      description = manifest.package.description;
      license = with lib.licenses; [ mit asl20 ];
      platforms = lib.platforms.linux;
      mainProgram = "roamd";
    };
  };
in
{
  options.services.roamd = {
    package = lib.mkOption {
      type = lib.types.package;
      default = roamd;
      defaultText = lib.literalMD "built from the checkout that this module is in";
      description = "The package to use.";
    };
    tunnels = lib.mkOption {
      default = { };
      description = "Tunnels by name.";
      type = lib.types.attrsOf (lib.types.submodule {
        options.settings = lib.mkOption {
          type = toml.type;
          description = "What roamd.toml(5) describes. It is in the store, where everybody can read it: no private-key.";
        };
      });
    };
  };

  config = lib.mkIf (cfg.tunnels != { }) {
    assertions = lib.mapAttrsToList (name: tunnel: {
      assertion = !(tunnel.settings ? private-key);
      message = "services.roamd.tunnels.${name}: the store is for everybody: use private-key-file";
    }) cfg.tunnels;
    environment.systemPackages = [ cfg.package ];
    environment.etc = lib.mapAttrs' (name: tunnel:
      lib.nameValuePair "roamd/${name}.toml" { source = toml.generate "${name}.toml" tunnel.settings; }
    ) cfg.tunnels;
    systemd.packages = [ cfg.package ];
    networking.networkmanager.plugins = lib.mkIf config.networking.networkmanager.enable [ cfg.package ];
    systemd.services = lib.mapAttrs' (name: _:
      lib.nameValuePair "roamd@${name}" {
        overrideStrategy = "asDropin";
        wantedBy = [ "multi-user.target" ];
        path = [ pkgs.nftables ];
        reloadTriggers = [ config.environment.etc."roamd/${name}.toml".source ];
      }
    ) cfg.tunnels;
    users.users.roamd = { isSystemUser = true; group = "roamd"; };
    users.groups.roamd = { };
  };
}
