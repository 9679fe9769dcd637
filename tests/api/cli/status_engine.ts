/** Volumes in memory, with the fake figures and attributes of FakeControl: loaded by the worker. */
import type { Engine, EngineWorld } from "../../../fuse/engine.ts";
import { openEngine as openMemoryEngine } from "../../fuse/support/memory_engine.ts";
import { FakeControl } from "../fake_control.ts";

export async function openEngine(world: EngineWorld): Promise<Engine> {
  const memory = await openMemoryEngine(world);
  const control = new FakeControl(memory.volumes.length);
  return {
    volumes: memory.volumes,
    status: () => control.status(),
    attributes: (device, name) => control.attributes(device, name),
    setAttribute: (device, name, value) => control.setAttribute(device, name, value),
    flushDirty: (device) => control.flushDirty(device),
    attach: (path, options) => control.attach(path, options),
    detach: (device) => control.detach(device),
    stop: (device, options) => control.stop(device, options),
    createVolume: (options) => control.createVolume(options),
    resizeVolume: (name, sizeBytes, options) => control.resizeVolume(name, sizeBytes, options),
    destroyVolume: (name, options) => control.destroyVolume(name, options),
    uuids: () => control.uuids(),
    forget: (uuid, options) => control.forget(uuid, options),
    close: () => memory.close(),
  };
}
