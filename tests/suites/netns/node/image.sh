# One image of a static busybox, made by hand: $1 is the folder to make it in; its root stays there for those who need no image.
set -e
busybox=$(command -v busybox)
mkdir -p "$1/root/bin" "$1/root/www" "$1/root/proc" "$1/root/sys" "$1/root/dev" "$1/root/etc" "$1/root/tmp"
cp "$busybox" "$1/root/bin/busybox"
for name in sh ip httpd wget sleep ping cat; do ln -sf busybox "$1/root/bin/$name"; done
echo hello > "$1/root/www/index.html"
tar -C "$1/root" --owner 0 --group 0 -cf "$1/layer.tar" .
sum=$(sha256sum "$1/layer.tar" | cut -d' ' -f1)
case $(uname -m) in aarch64) machine=arm64 ;; *) machine=amd64 ;; esac
cat > "$1/config.json" <<END
{"architecture": "$machine", "os": "linux", "config": {"Cmd": ["/bin/httpd", "-f", "-p", "80", "-h", "/www"], "Env": ["PATH=/bin"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$sum"]}}
END
echo '[{"Config": "config.json", "RepoTags": ["local/web:1"], "Layers": ["layer.tar"]}]' > "$1/manifest.json"
tar -C "$1" -cf "$1/image.tar" manifest.json config.json layer.tar
