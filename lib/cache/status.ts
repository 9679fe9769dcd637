/** The state of a cache set as plain data, for the API and the command line. */
import { decodeLabel } from "../ondisk/label.ts";
import { formatUuid } from "../ondisk/uuid.ts";
import type { Bypass } from "./requests/bypass.ts";
import type { CachedDevice } from "./requests/cached_device.ts";
import type { Engine } from "./engine.ts";
import type { FailedService } from "./requests/failed_service.ts";
import { uuidEntryLabel } from "../ondisk/uuid_entry.ts";
import type { FlashMember } from "./members/flash_volumes.ts";
import type { DeviceStatus, SetStatus, VolumeStatus } from "./ports.ts";
import type { Writeback } from "./writeback/writeback.ts";

const SECTOR = 512;

interface Member {
  readonly dev: CachedDevice;
  readonly writeback: Writeback;
  readonly failedService: FailedService;
}

function reasonsOf(bypass: Bypass): Record<string, number> {
  const counted = Object.entries(bypass.counts);
  return Object.fromEntries(counted.filter(([reason, count]) => reason !== "none" && count > 0));
}

export function deviceStatus({ dev, writeback, failedService }: Member): DeviceStatus {
  return {
    name: dev.name,
    backingPath: dev.path,
    attached: dev.attached,
    ...(dev.attached && dev.detaching ? { detaching: true } : {}),
    uuid: formatUuid(dev.superblock.uuid),
    label: decodeLabel(dev.superblock.label),
    sizeBytes: dev.sizeSectors * SECTOR,
    blockSizeBytes: dev.superblock.blockSectors * SECTOR,
    cacheMode: dev.mode,
    state: dev.state,
    dirtyBytes: dev.dirtySectors * SECTOR,
    writeback: {
      running: writeback.running,
      percent: writeback.rate.tunables.percent,
      rateBytesPerSecond: writeback.rateNow * SECTOR,
    },
    ioErrors: dev.errors.count,
    bypassReasons: reasonsOf(dev.bypass),
    ...(dev.lastError === undefined ? {} : { lastError: dev.lastError }),
    ...(dev.disabledBy === undefined ? {} : { disabled: dev.disabledBy }),
    ...(dev.attached && failedService.needed ? { service: failedService.manner } : {}),
    stats: dev.stats.snapshot("total"),
  };
}

export function volumeStatus(engine: Engine, { name, inode, volume }: FlashMember): VolumeStatus {
  const entry = engine.uuids.entry(inode);
  return {
    name,
    uuid: formatUuid(entry.uuid),
    label: uuidEntryLabel(entry),
    sizeBytes: volume.sizeBytes,
    blockSizeBytes: volume.blockSizeBytes,
    usedBytes: engine.dirty.of(inode) * SECTOR,
  };
}

export function setStatus(
  engine: Engine,
  members: { readonly cached: readonly Member[]; readonly flash: readonly FlashMember[] },
  own: { uptimeSeconds: number; ioErrors: number; lastError: string | undefined },
): SetStatus {
  const { geometry, btree, buckets, journal } = engine;
  const inUsePercent = buckets.inUsePercent();
  const { written } = engine;
  return {
    setUuid: formatUuid(engine.superblock.setUuid),
    cachePath: engine.cache.name,
    sizeBytes: geometry.bucketCount * geometry.bucketBytes,
    bucketSizeBytes: geometry.bucketBytes,
    blockSizeBytes: geometry.blockBytes,
    bucketCount: geometry.bucketCount,
    replacementPolicy: engine.allocator.policy,
    ...(engine.faults.failed ? { failed: engine.faults.failed.message } : {}),
    ...(own.lastError === undefined ? {} : { lastError: own.lastError }),
    inUsePercent,
    availablePercent: 100 - inUsePercent,
    btree: {
      depth: btree.root.level,
      nodes: btree.nodesResident,
      cachedBytes: btree.residentBytes,
    },
    journal: {
      sequence: journal.sequence,
      activeEntries: journal.counters.activeEntries,
    },
    writtenBytes: written.data,
    btreeWrittenBytes: written.btree,
    metadataWrittenBytes: written.metadata,
    ioErrors: own.ioErrors,
    uptimeSeconds: own.uptimeSeconds,
    devices: members.cached.map(deviceStatus),
    volumes: members.flash.map((member) => volumeStatus(engine, member)),
  };
}
