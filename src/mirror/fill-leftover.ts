import { fillOwner } from '../../storage/mirror-store.js'
import { algorithmOf } from '../oci/digest.js'
import type { FillContext, FillTask } from './fill-task.js'

/** Throws away what an earlier try has left of a blob that has come in another way, unless somebody is at it. */
export async function dropLeftover(
  { id, mirror, repository, digest }: Omit<FillTask, 'upstream' | 'remote'>,
  { blobs, metadata, mirrors, newHolder }: Pick<FillContext, 'blobs' | 'metadata' | 'mirrors' | 'newHolder'>,
): Promise<void> {
  const left = await mirrors.findFill(id)
  if (left === undefined || left.isHeld) return
  const holder = newHolder()
  const fill = { id, mirror, repository, digest, owner: fillOwner, algorithm: algorithmOf(digest) }
  if (typeof (await mirrors.takeFill(fill, holder, Date.now())) === 'string') return
  try {
    await blobs.discard(id)
    await metadata.removeUpload(id, holder)
  } catch (error) {
    await metadata.releaseTurn(id, holder)
    throw error
  }
}
