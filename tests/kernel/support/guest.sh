#!/bin/busybox sh
# PID 1 of the guest: loads the modules, runs /script with the functions below, powers off. What
# the script prints goes to the first serial line, the kernel's messages go to the second.
# Everything that goes wrong is said in a line that begins with "error:".
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1 </dev/null
stty -F /dev/ttyS0 raw
while read -r module; do
  insmod "/modules/$module" || echo "error: insmod $module"
done </modules/order

# put FILE VALUE: writes a sysfs attribute.
put() { echo "$2" >"$1" || echo "error: $2 was refused by $1"; }

# until_is SECONDS COMMAND...: repeats it until it succeeds.
until_is() {
  left=$(($1 * 50))
  shift
  until "$@" 2>/dev/null; do
    left=$((left - 1))
    [ $left -gt 0 ] || { echo "error: after waiting, still not: $*"; return 1; }
    usleep 20000
  done
}
gone() { ! [ -e "$1" ]; }
reads() { [ "$(cat "$1")" = "$2" ]; }

# disk SERIAL: the block device with that serial number.
disk() {
  for each in /sys/block/vd*; do
    [ "$(cat "$each/serial")" = "$1" ] && { echo "${each##*/}"; return; }
  done
  echo "error: no disk $1" >&2
}
# volume_of SERIAL: the bcacheN that a backing device became.
volume_of() { path=$(readlink "/sys/block/$(disk "$1")/bcache/dev") && echo "${path##*/}"; }

# flash_of SERIAL: the bcacheN that the one volume on that cache alone became.
flash_of() {
  path=$(readlink -f "$(set_of "$1")"/volume*) && path=${path%/bcache} &&
    [ -b "/dev/${path##*/}" ] && echo "${path##*/}"
}
has_flash() { flash_of "$1" >/dev/null; }

# register SERIAL: hands the device to the kernel.
register() { put /sys/fs/bcache/register "/dev/$(disk "$1")"; }
set_of() { path=$(readlink -f "/sys/block/$(disk "$1")/bcache/set") && echo "$path"; }
attach() { put "/sys/block/$(disk "$2")/bcache/attach" "$(basename "$(set_of "$1")")"; }
runs() { [ -b "/dev/$(volume_of "$1")" ] && reads "/sys/block/$(disk "$1")/bcache/running" 1; }
# setting SERIAL NAME VALUE: an attribute of the volume on a backing device.
setting() { put "/sys/block/$(disk "$1")/bcache/$2" "$3"; }
# expect NAME DEVICE SHA256 MIB SLOT: reads a device. Its first MIB mebibytes must have that hash;
# the one behind them is copied to the witness disk, at mebibyte SLOT, for the host to look at. When
# the hash is another, all of it is copied, and the run ends here.
expect() {
  name=$1 device=$2 hash=$3 mib=$4 slot=$5
  witness=/dev/$(disk witness)
  dd if="/dev/$device" of="$witness" bs=1M skip="$mib" seek="$slot" conv=notrunc 2>/dev/null
  set -- "$(dd if="/dev/$device" bs=1M count="$mib" 2>/dev/null | sha256sum | cut -d ' ' -f 1)"
  [ "$hash" = "$1" ] && { echo "same $name"; return; }
  dd if="/dev/$device" of="$witness" bs=1M conv=notrunc 2>/dev/null
  echo "different $name"
  stop_all
  sync
  poweroff -f
  sleep 1000
}
# copy DEVICE UNIT FROM TO COUNT: writes a piece of the data disk, past the page cache.
copy() {
  dd if="/dev/$DATA" of="/dev/$1" bs="$2" skip="$3" seek="$4" count="$5" oflag=direct \
    conv=notrunc 2>/tmp/dd || echo "error: dd: $(cat /tmp/dd)"
}
# durable DEVICE: everything written so far survives a power cut.
durable() {
  dd if=/dev/null of="/dev/$1" conv=notrunc,fsync 2>/tmp/dd || echo "error: fsync: $(cat /tmp/dd)"
}
# collect SERIAL: garbage collection of the set with this cache; it runs beside what follows.
collect() { put "$(set_of "$1")/internal/trigger_gc" 1; }
# collected SERIAL: a collection of that set has ended since it was registered.
collected() { [ "$(cat "$(set_of "$1")/internal/btree_gc_last_sec")" -ge 0 ]; }
# stop_all: stops every device and set, as a shutdown does.
stop_all() {
  for each in /sys/block/bcache*/bcache/stop /sys/fs/bcache/*-*/stop /sys/block/vd*/bcache/stop; do
    [ -e "$each" ] && echo 1 >"$each"
  done
  for each in /sys/block/bcache* /sys/fs/bcache/*-* /sys/block/vd*/bcache; do
    [ -e "$each" ] && until_is 60 gone "$each"
  done
}
# marker WORD: the host cuts the power when it reads this.
marker() {
  echo "marker $1"
  while :; do sleep 1000; done
}

. /script
echo "end of the script"
sync
poweroff -f
