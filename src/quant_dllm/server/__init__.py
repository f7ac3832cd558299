"""An HTTP endpoint in OpenAI's form, and a page that shows denoising live."""
