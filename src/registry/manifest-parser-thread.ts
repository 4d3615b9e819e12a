import { RegistryError } from '../oci/errors.js'
import { parseManifest } from '../oci/manifest.js'
import { packManifest } from '../oci/packed-manifest.js'
import type { ParseReply, ParseRequest } from './manifest-parser.js'

/** Runs on a thread of its own: see ManifestParser. */
export default function parse({ bytes, contentType }: ParseRequest): ParseReply {
  try {
    return { ok: true, manifest: packManifest(parseManifest(bytes, contentType)) }
  } catch (error) {
    if (error instanceof RegistryError) return { ok: false, kind: error.kind, message: error.message }
    throw error
  }
}
